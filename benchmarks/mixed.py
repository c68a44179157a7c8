"""Documents without end that are unlike each other: lines of real documents, drawn anew. The test corpus where it is there, else the sample."""

import itertools
import random
from functools import cache

from benchmarks.corpus import CORPUS, read_documents
from ops.producing.findings import Found
from ops.producing.samples import WHOLE, sample_documents

NUM_DOCUMENTS = 4_000
MIN_LINE_CHARS = 40


@cache
def lines() -> tuple[str, ...]:
    """Some ten thousand lines, in an order that is always the same."""
    return tuple(sorted({line.strip() for text in _texts() for line in text.splitlines() if len(line.strip()) >= MIN_LINE_CHARS}))


def mixed(rng: random.Random, fewest: int, most: int) -> str:
    """A document of so many lines."""
    return "\n".join(rng.choices(lines(), k=rng.randint(fewest, most)))


def _texts() -> list[str]:
    if CORPUS.is_file():
        return [document["text"] for document in read_documents(CORPUS, number=NUM_DOCUMENTS, step=17)]
    found = itertools.islice(sample_documents(WHOLE), NUM_DOCUMENTS)
    return [finding.document.text for finding in found if isinstance(finding, Found)]
