"""A language model as an ARPA file, which kenlm, SRILM and others read: ``kenlm.Model(path).score`` gives what perplexity.py computes."""

from pathlib import Path

from pipelines.quality.perplexity import LanguageModel, stored_grams


def write_arpa(path: Path, model: LanguageModel, units: list[str]) -> None:
    """Write the model to ``path``. ``units``: names by id; letters of spelled words are ``^k`` (first) and ``~e``."""
    orders = stored_grams(model)
    with path.open("w", encoding="utf-8") as file:
        file.write("\\data\\\n" + "".join(f"ngram {order}={len(ids)}\n" for order, (ids, _) in enumerate(orders, start=1)))
        for order, (ids, scores) in enumerate(orders, start=1):
            file.write(f"\n\\{order}-grams:\n")
            for row, (probability, backoff) in zip(ids.tolist(), scores.tolist(), strict=True):
                # No probability is above 1, but the nearest float32 to it may be.
                line = f"{min(probability, 0.0):.8g}\t{' '.join(units[number] for number in row)}"
                file.write(f"{line}\t{backoff:.8g}\n" if order < len(orders) else f"{line}\n")
        file.write("\n\\end\\\n")
