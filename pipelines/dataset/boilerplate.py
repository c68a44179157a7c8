"""The lines that many kept documents have, from version to version: what a batch loses follows from committed files and settings alone.

Each version writes one file of counts (dedup/paragraphs.py). It covers a run of versions that ends with its own: it takes in the files before
it as long as these have at most twice its lines, so that a line is written again a number of times that grows with the logarithm of the
dataset, and few files are in force. When these have more than ``boilerplate_max_entries`` lines together, the new file covers everything and
the rarest lines are forgotten until half of that is left.

The files stay what they are when a document is retracted: a count of hashes holds no text, and an author's wish does not make a footer rarer.
Invariant: ``known`` is the same whether the counts were carried along in memory or read anew. Holds 12 bytes a line. Where ``dedup.boilerplate``
is off nothing is read, counted or written; the counts go on from what is there when it is on again.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.history import Holds
from pipelines.dataset.names import boilerplate_path
from pipelines.dedup.paragraphs import EMPTY, ParagraphCounts
from pipelines.storage.durable import file_entry
from pipelines.storage.pinned import verify_pinned
from schemas.arrow import Outcome
from schemas.manifest import FileEntry
from schemas.settings_dedup import DedupSettings

GROWTH = 2
"""A file takes in the one before it unless that has more than so many times its lines."""


class CountsFile(NamedTuple):
    """A file of counts in force."""

    entry: FileEntry
    first_version: int
    """It covers the versions from this one to the one that wrote it."""


class Written(NamedTuple):
    """What a version adds; no file if it counted no line."""

    files: list[FileEntry]
    first_version: int


NOTHING = Written([], 0)


def counts_files(dataset: Dataset | None) -> list[CountsFile]:
    """The files that together hold the counts of versions 1..N, oldest first."""
    if dataset is None:
        return []
    found: list[CountsFile] = []
    covered_from = dataset.version + 1
    for version in reversed(dataset.versions_with(Holds.BOILERPLATE)):
        if version < covered_from:
            manifest = dataset.read(version)
            covered_from = manifest.boilerplate_first_version
            found.append(CountsFile(manifest.boilerplate[0], covered_from))
    return found[::-1]


def carry_over(source: Dataset, root: Path, attempt: str, version: int) -> Written:
    """Write the counts of versions 1..N durably, as the file of a version under another root that covers all versions up to it."""
    counts = _sum([ParagraphCounts.load(verify_pinned(source.root, file.entry)) for file in counts_files(source)])
    if not len(counts.hashes):
        return NOTHING
    path = root / boilerplate_path(version, attempt)
    counts.save(path)
    return Written([file_entry(root, path, len(counts.hashes))], 1)


class Boilerplate:
    """``open`` before a batch, ``add`` each block with its outcomes, then ``write``."""

    def __init__(self, settings: DedupSettings) -> None:
        self._settings = settings
        self._state: tuple[list[CountsFile], ParagraphCounts] = ([], EMPTY)
        """Files and the sum of their counts: of the version that was opened, or of the one that this batch may become."""
        self._new = EMPTY
        self._waiting: list[ParagraphCounts] = []

    @property
    def known(self) -> npt.NDArray[np.uint64]:
        """Hashes of the lines to take out of the opened batch, ascending."""
        return self._known

    @property
    def is_counting(self) -> bool:
        """Whether lines are counted."""
        return self._settings.boilerplate

    def open(self, dataset: Dataset | None) -> None:
        """Be at the state of that version."""
        self._new, self._waiting = EMPTY, []
        self._known = EMPTY.hashes
        if not self._settings.boilerplate:
            return
        self._version = dataset.version + 1 if dataset else 1
        files = counts_files(dataset)
        if files != self._state[0]:
            assert dataset is not None
            self._state = (files, _sum([ParagraphCounts.load(verify_pinned(dataset.root, file.entry)) for file in files]))
        self._known = self._state[1].known(self._settings.boilerplate_min_documents)

    def add(self, block: pa.Table, outcomes: pa.Array) -> None:
        """Count the lines of the kept documents of a prepared block, ``outcomes`` being what became of its rows."""
        if not self._settings.boilerplate:
            return
        kept = block["paragraphs"].filter(pc.equal(outcomes, Outcome.KEPT))
        self.add_counts(ParagraphCounts.of(kept.combine_chunks()))

    def add_counts(self, counts: ParagraphCounts) -> None:
        """Take in the lines of kept documents that were counted elsewhere."""
        self._waiting.append(counts)
        if sum(len(counts.hashes) for counts in self._waiting) > max(len(self._new.hashes), 100_000):
            self._take_in()

    def write(self, root: Path, attempt: str) -> Written:
        """Write this version's file, durably, and be at the state that its publication makes real."""
        self._take_in()
        if not len(self._new.hashes):
            return NOTHING
        files, total = self._state
        counts, first_version = self._new, self._version
        total = total.merge(counts)
        if len(total.hashes) > self._settings.boilerplate_max_entries:
            files, total = [], total.pruned(self._settings.boilerplate_max_entries // 2)
            counts, first_version = total, 1
        while files and files[-1].entry.rows <= GROWTH * len(counts.hashes):
            counts = counts.merge(ParagraphCounts.load(verify_pinned(root, files[-1].entry)))
            files, first_version = files[:-1], files[-1].first_version
        path = root / boilerplate_path(self._version, attempt)
        counts.save(path)
        entry = file_entry(root, path, len(counts.hashes))
        self._state = ([*files, CountsFile(entry, first_version)], total)
        return Written([entry], first_version)

    def _take_in(self) -> None:
        self._new, self._waiting = _sum([self._new, *self._waiting]), []


def _sum(parts: list[ParagraphCounts]) -> ParagraphCounts:
    total = EMPTY
    for part in parts:
        total = total.merge(part)
    return total
