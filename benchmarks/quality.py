"""Quality rules beside datatrove's filters, in one run: how often verdicts agree, and MB/s.

    python -m benchmarks.quality [--corpus ../shared/corpus] [--documents 3000]

Both split words at white space and sentences at terminal punctuation (tests/datatrove_reference.py), so that the rules are compared, not
the splitting; datatrove's own splitting (spaCy) is slower by far. Documents are English and normalized. Times are CPU seconds of one thread.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.steps.normalize import normalize
from pipelines.steps.quality import Judged, judge
from schemas.settings import Settings
from schemas.settings_quality import RULE_SETS, QualitySettings
from tests.datatrove_reference import IS_INSTALLED, SETS, settings_of, verdicts

NUM_EXAMPLES = 5


def read_documents(path: Path) -> list[dict[str, Any]]:
    with pa.CompressedInputStream(pa.OSFile(str(path / "documents.jsonl.zst")), "zstd") as stream:
        return [json.loads(line) for line in stream.read().splitlines()]


def sample(documents: list[dict[str, Any]], count: int) -> pa.Array:
    """Evenly drawn, normalized."""
    texts = [document["text"] for document in documents]
    return normalize(pa.array(texts[:: max(len(texts) // count, 1)], pa.large_string())).texts


def cpu_seconds(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Shortest of a few runs, and what the last one gave."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        answer = work()
        times.append(time.process_time() - start)
    return min(times), answer


def judge_all(texts: pa.Array, language: str, settings: Settings) -> Judged:
    return judge(texts, pa.array([language] * len(texts)), np.zeros(len(texts), np.int64), settings)


def compare(name: str, texts: pa.Array) -> None:
    megabytes = texts.nbytes / 1e6
    our_seconds, judged = cpu_seconds(lambda: judge_all(texts, "en", settings_of(name)), 3)
    their_seconds, answers = cpu_seconds(lambda: verdicts(name, texts.to_pylist()), 1)
    ours, theirs = judged.rules.to_pylist(), [verdict for verdict, _ in answers]
    same_verdict = np.mean([(a is None) == (b is None) for a, b in zip(ours, theirs, strict=True)])
    same_rule = np.mean([a == b for a, b in zip(ours, theirs, strict=True)])
    same_text = np.mean([a == b[1] for a, b, rule in zip(judged.texts.to_pylist(), answers, theirs, strict=True) if rule is None])
    rates = f"{megabytes / our_seconds:8.1f} {megabytes / their_seconds:10.2f} {their_seconds / our_seconds:6.0f}x"
    print(f"{name:18s} {len(ours):9d} {same_verdict:9.2%} {same_rule:9.2%} {same_text:9.2%} {rates}")
    for (our_rule, their_rule), count in Counter(pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]).most_common(NUM_EXAMPLES):
        print(f"    {count} documents: {our_rule}, datatrove {their_rule}")


def compare_with_datatrove(texts: pa.Array) -> None:
    if not IS_INSTALLED:
        print("datatrove is not installed: pip install datatrove")
        return
    judge_all(texts[:1], "en", Settings(quality=QualitySettings(rule_sets=RULE_SETS)))
    print(f"{'set':18s} {'documents':>9s} {'verdicts':>9s} {'rules':>9s} {'texts':>9s} {'MB/s':>8s} {'datatrove':>10s}")
    for name in SETS:
        compare(name, texts)
    print("Texts differ where C4 keeps a line that ends in full-width punctuation, or a citation stood at its beginning: the space behind it goes.")


def measure_speed(texts: pa.Array, language: str, label: str) -> None:
    megabytes = texts.nbytes / 1e6
    lenient = Settings().c4.model_copy(update={"require_terminal_punctuation": False, "min_sentences": 0, "reject_curly_bracket": False})
    chosen: dict[str, dict[str, Any]] = {
        "headrace (default)": {},
        "all five sets": {"quality": QualitySettings(rule_sets=RULE_SETS)},
        "all five, C4 rejects none": {"quality": QualitySettings(rule_sets=RULE_SETS), "c4": lenient},
    }
    for name, sections in chosen.items():
        settings = Settings(**sections)
        seconds, _ = cpu_seconds(lambda settings=settings: judge_all(texts, language, settings), 4)  # type: ignore[misc]
        print(f"{label:8s} {name:26s} {megabytes / seconds:8.1f} MB/s {len(texts) / seconds:10.0f} documents/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("../shared/corpus"))
    parser.add_argument("--documents", type=int, default=3000)
    options = parser.parse_args()
    if not options.corpus.exists():
        print(f"no corpus at {options.corpus}")
        return
    documents = read_documents(options.corpus)
    english = [document for document in documents if document["lang"] == "en"]
    chinese = [document for document in documents if document["lang"].startswith("zh")]
    compare_with_datatrove(sample(english, options.documents))
    measure_speed(sample(english, 4 * options.documents), "en", "English")
    measure_speed(sample(chinese, 2 * options.documents), "zh", "Chinese")


if __name__ == "__main__":
    main()
