"""The published sets against datatrove's own filters, on real English documents, with the same settings and the same splitting of words.

`python -m tests.contract.test_datatrove_parity` writes tests/unit/golden/datatrove_verdicts.json anew.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.steps.normalize import normalize
from pipelines.steps.quality import judge
from tests.datatrove_reference import IS_INSTALLED, SETS, settings_of, verdicts
from tests.rule_documents import CASES

CORPUS = Path(__file__).parents[2].parent / "shared" / "corpus" / "documents.jsonl.zst"
GOLDEN = Path(__file__).parents[1] / "unit" / "golden" / "datatrove_verdicts.json"
MIN_AGREEMENT = 0.995

needs_datatrove = pytest.mark.skipif(not IS_INSTALLED, reason="needs datatrove, loguru, humanize and multiprocess")


@pytest.fixture(scope="module", params=[1000, pytest.param(3000, marks=pytest.mark.slow)])
def documents(request: pytest.FixtureRequest) -> pa.Array:
    """So many English documents, evenly drawn, or a few more."""
    if not CORPUS.exists():
        pytest.skip(f"needs the test corpus at {CORPUS}")
    with pa.CompressedInputStream(pa.OSFile(str(CORPUS)), "zstd") as stream:
        texts = [document["text"] for line in stream.read().splitlines() if (document := json.loads(line))["lang"] == "en"]
    return normalize(pa.array(texts[:: len(texts) // request.param], pa.large_string())).texts


@needs_datatrove
@pytest.mark.parametrize("name", SETS)
def test_verdicts_on_english_documents_are_datatroves(name: str, documents: pa.Array) -> None:
    theirs = [verdict for verdict, _ in verdicts(name, documents.to_pylist())]
    judged = judge(documents, pa.array(["en"] * len(documents)), np.zeros(len(documents), np.int64), settings_of(name))
    ours = judged.rules.to_pylist()
    assert len(ours) >= 1000
    assert np.mean([(a is None) == (b is None) for a, b in zip(theirs, ours, strict=True)]) >= MIN_AGREEMENT
    assert np.mean([a == b for a, b in zip(theirs, ours, strict=True)]) >= MIN_AGREEMENT


@needs_datatrove
def test_texts_that_c4_cleans_are_datatroves(documents: pa.Array) -> None:
    """But for lines that end in full-width punctuation, which datatrove drops in any document."""
    theirs = verdicts("c4", documents.to_pylist())
    ours = judge(documents, pa.array(["en"] * len(documents)), np.zeros(len(documents), np.int64), settings_of("c4"))
    pairs = [(text, cleaned) for (verdict, text), cleaned in zip(theirs, ours.texts.to_pylist(), strict=True) if verdict is None]
    without = [["\n".join(line for line in text.split("\n") if not line.endswith(("。", "！", "？"))) for text in pair] for pair in pairs]
    assert len(pairs) > len(documents) / 5
    assert sum(a == b for a, b in without) / len(pairs) >= MIN_AGREEMENT


@needs_datatrove
def test_the_recorded_verdicts_are_datatroves() -> None:
    assert json.loads(GOLDEN.read_text(encoding="utf-8")) == recorded()


def recorded() -> dict[str, str | None]:
    """datatrove's verdict on each English document of tests/rule_documents.py."""
    answers: dict[str, str | None] = {}
    for name, cases in CASES.items():
        for case in cases:
            if case.language == "en":
                fires, nearly = verdicts(name, [case.fires, case.nearly])
                answers |= {f"{name}/{case.name}/fires": fires[0], f"{name}/{case.name}/nearly": nearly[0]}
    return answers


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(recorded(), indent=1) + "\n", encoding="utf-8")
