"""Quality models on the test corpus, in one run: what fitting costs, how fast scoring is beside kenlm, and what perplexity tells apart.

    python -m benchmarks.quality_models [--corpus ../shared/corpus] [--megabytes 5] [--orders 3]

Times are CPU time of one thread. kenlm gets the same units of the same model, already split: what its Python call costs is all that is measured.
"""

import argparse
import importlib.util
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.machine import machine, versions
from pipelines.quality.arpa import write_arpa
from pipelines.quality.classifier import auc
from pipelines.quality.fit import FitOptions, Fitted, fit_language
from pipelines.quality.scoring import PERPLEXITY, Parts, empty_parts, score_rows
from pipelines.quality.units import all_tokens, unit_source
from pipelines.quality.vocabulary import END, encode
from pipelines.text.buffers import utf8_views

NOTHING = pa.array([], pa.large_string())
NUM_HELD_OUT = 600
MIN_CHARS = 300


def read_texts(path: Path, language: str) -> list[str]:
    with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
        documents = [json.loads(line) for line in stream.read().split(b"\n") if f'"lang": "{language}"'.encode() in line[:300]]
    texts = [document["text"] for document in documents if len(document["text"]) > MIN_CHARS]
    random.Random(0).shuffle(texts)
    return texts


def strings(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Least CPU time of this thread; the first call, which may compile, does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times)


def scores(texts: list[str], parts: Parts) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return score_rows(utf8_views(strings(texts)), np.arange(len(texts)), parts)


def shuffled(text: str, language: str, rng: random.Random) -> str:
    units = text.split() if language == "en" else list(text)
    rng.shuffle(units)
    return (" " if language == "en" else "").join(units)


def mashed(text: str, language: str, rng: random.Random) -> str:  # noqa: ARG001  # what it replaces does not matter
    return " ".join("".join(rng.choices("asdfghjklqwertyuiop;,./", k=rng.randint(2, 10))) for _ in range(len(text) // 8 + 5))


def misread(text: str, language: str, rng: random.Random) -> str:  # noqa: ARG001  # as above
    return text.encode().decode("utf-16-le" if language == "en" else "latin-1", "replace")


def units_of(fitted: Fitted, texts: list[str]) -> list[str]:
    """Paragraphs as kenlm takes them: units with spaces between them."""
    found = []
    for text in texts:
        views = utf8_views(strings([text]))
        source = unit_source(views.data)
        tokens, _ = all_tokens(source, views.offsets)
        ids = np.zeros(len(views.data) + 1, np.int64)
        count = encode(source, views.offsets[1], tokens, fitted.parts.language_model.vocabulary, ids)
        for paragraph in np.split(ids[:count], np.flatnonzero(ids[:count] == END)):
            found.append(" ".join(fitted.units[number] for number in paragraph if number != END))
    return found


def measure_language(texts: list[str], language: str, options: FitOptions, num_bytes: int) -> Fitted:
    """Fit on the first part of the texts, judge the last ones."""
    held_out = texts[-NUM_HELD_OUT:]
    sizes = np.cumsum([len(text.encode()) for text in texts[:-NUM_HELD_OUT]])
    training = texts[: int(np.searchsorted(sizes, num_bytes))]
    start = time.thread_time()
    fitted = fit_language(strings(training), NOTHING, NOTHING, options)
    fit_s = time.thread_time() - start
    model = fitted.parts.language_model
    size_mb = (model.vocabulary.nbytes + model.unigrams.nbytes + model.grams.nbytes) / 1e6
    clean = scores(held_out, fitted.parts)[:, PERPLEXITY]
    rng = random.Random(1)
    told = []
    for breaking in (shuffled, mashed, misread):
        broken = scores([breaking(text, language, rng) for text in held_out], fitted.parts)[:, PERPLEXITY]
        told.append(f"{breaking.__name__} {auc(np.nan_to_num(broken), np.nan_to_num(clean)):.3f}")
    name = f"{language} order {options.order} prune {options.prune}"
    print(f"{name}: {len(training):,} documents, fit {fit_s:5.1f} s, model {size_mb:6.1f} MB, AUC {', '.join(told)}; {rates(held_out, fitted.parts)}")
    return fitted


def rates(texts: list[str], parts: Parts) -> str:
    """MB/s of each model alone and of all in one pass."""
    array = strings(texts)
    views, rows = utf8_views(array), np.arange(len(texts))
    nothing = empty_parts()
    alone = {
        "perplexity": nothing._replace(language_model=parts.language_model),
        "informativeness": nothing._replace(idf=parts.idf),
        "classifier": nothing._replace(classifier=parts.classifier),
        "all": parts,
    }
    measured = {name: array.nbytes / 1e6 / seconds(lambda part=part: score_rows(views, rows, part)) for name, part in alone.items()}  # type: ignore[misc]
    return ", ".join(f"{name} {rate:.0f}" for name, rate in measured.items() if name != "classifier" or len(parts.classifier)) + " MB/s"


def measure_kenlm(texts: list[str], fitted: Fitted) -> None:
    """The same model in kenlm, one call per paragraph."""
    if not importlib.util.find_spec("kenlm"):
        print("kenlm is not installed: left out")
        return
    import kenlm

    with tempfile.NamedTemporaryFile(suffix=".arpa") as file:
        write_arpa(Path(file.name), fitted.parts.language_model, fitted.units)
        model = kenlm.Model(file.name)
    paragraphs = units_of(fitted, texts)
    num_bytes = sum(len(text.encode()) for text in texts)
    print(f"kenlm over ready-made units: {num_bytes / 1e6 / seconds(lambda: [model.score(paragraph) for paragraph in paragraphs]):.0f} MB/s of text")


def measure_all(texts: list[str], num_bytes: int) -> None:
    """All three models of English, the classifier against shuffled text."""
    rng = random.Random(2)
    good = texts[:2000]
    sizes = np.cumsum([len(text.encode()) for text in texts[:-NUM_HELD_OUT]])
    training = texts[: int(np.searchsorted(sizes, num_bytes))]
    start = time.thread_time()
    fitted = fit_language(strings(training), strings(good), strings([mashed(text, "en", rng) for text in good[:1000]]), FitOptions())
    print(f"en, all models: fit {time.thread_time() - start:.1f} s; {rates(texts[-NUM_HELD_OUT:], fitted.parts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, default=Path(__file__).parents[2] / "shared" / "corpus")
    parser.add_argument("--megabytes", type=int, default=5)
    parser.add_argument("--orders", default="3")
    args = parser.parse_args()
    path = args.corpus / "documents.jsonl.zst"
    if not path.exists():
        print(f"no corpus in {args.corpus}: nothing is measured")
        return
    print(f"{machine()}\n{versions('numba', 'kenlm')}; MB/s of CPU of one thread, AUC of perplexity against broken text")
    for language in ("en", "zh"):
        texts = read_texts(path, language)
        for order in map(int, args.orders.split(",")):
            for prune in (0, 1):
                fitted = measure_language(texts, language, FitOptions(order, prune), args.megabytes * 1_000_000)
        measure_kenlm(texts[-NUM_HELD_OUT:], fitted)
        if language == "en":
            measure_all(texts, args.megabytes * 1_000_000)


if __name__ == "__main__":
    main()
