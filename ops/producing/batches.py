"""Documents of files and folders as the pipeline would see them: normalized, with their languages, in batches of about BATCH_CHARS characters."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from ops.producing.findings import Failed, Found, TooLarge
from ops.producing.readers import ReadOptions, read_paths
from pipelines.steps.language import detect_languages
from pipelines.steps.normalize import normalize

BATCH_CHARS = 4 * 2**20
SHOWN_PROBLEMS = 20


class Batch(NamedTuple):
    """Normalized documents with their languages."""

    ids: list[str]
    texts: pa.Array
    """large_string"""
    languages: pa.Array
    """string"""


def read_batches(paths: Sequence[str], options: ReadOptions, language: str | None, say: Callable[[str], None]) -> Iterator[Batch]:
    """All documents of the paths, `-` being standard input. ``language`` is that of all, else detected; ``say`` hears what cannot be read."""
    ids: list[str] = []
    texts: list[str] = []
    num_chars = num_problems = 0
    for finding in read_paths(paths, options, sys.stdin.buffer):
        if isinstance(finding, Found):
            ids.append(finding.document.id or finding.origin)
            texts.append(finding.document.text)
            num_chars += len(finding.document.text)
        elif isinstance(finding, Failed | TooLarge):
            num_problems += 1
            if num_problems <= SHOWN_PROBLEMS:
                say(f"{finding.origin}: {finding.error if isinstance(finding, Failed) else 'too large'}")
        if num_chars >= BATCH_CHARS:
            yield _batch(ids, texts, language)
            ids, texts, num_chars = [], [], 0
    if ids:
        yield _batch(ids, texts, language)
    if num_problems:
        say(f"{num_problems:,} files or records could not be read and were left out")


def _batch(ids: list[str], texts: list[str], language: str | None) -> Batch:
    normalized = normalize(pa.array(texts, pa.large_string())).texts
    languages = pa.array([language] * len(ids), pa.string()) if language else detect_languages(normalized)
    return Batch(ids, normalized, languages)
