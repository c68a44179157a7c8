"""Retractions take documents out, in commit order; replayed dead letters enter once.

What a retraction of id X does, be it a null value or an event:

- every document with id X that was kept before it in commit order (an earlier version, or before it in the same one) is out: its span
  is masked from this version on, and its fingerprint is forgotten, so that a near duplicate may enter behind the retraction;
- a document with id X that comes after it in the same partition enters anew: there the order is that of the producer;
- a document with id X that comes after it in another partition was not necessarily written after it. It enters if its Kafka timestamp
  is later than the retraction's; else it is rejected under the rule ``retracted``. A missing timestamp counts as not later;
- a document with id X that was published after the retraction, but was read before it (by an earlier version, or by the same one from a partition
  with a lower number), is retracted too: it comes before the retraction in commit order. Ingest logs a warning; publish it again. Records that are
  keyed by document id avoid this while the number of partitions stays the same.

Apart from that case a retraction acts on what was published before it, and whoever publishes the id again later brings it back. Ingest warns of
that, and ``headrace trace`` says it.

So where the order is not known, privacy wins: a document may be lost that somebody published again within the same moments under
another key, but none is kept that was published before its retraction. A retraction of an unknown id, or a second one, changes nothing.

Replays: a record that carries REPLAY_HEADER and whose id is that of a document that is kept and not retracted is a duplicate of it, for
the reason ``replayed``, whatever its text. So replaying a dead letter twice, or one that its producer has mended meanwhile, adds nothing.

State is a function of the committed versions; like dataset/duplicates.py, it is read again after a batch that was not committed.
The duplicate index knows which documents have a retracted or replayed id (dedup/resolve.py), because it maps the ids of all kept documents. So
nothing is read and nothing is held here for that. Costs: one look-up in the index per block that has replays; for each retraction that finds a
document, a reading of the trail of that document's version, one version at a time; else a look at two columns per block.
"""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.retractions.tombstones import RULE, Tombstones, retracted_despite_republication
from pipelines.dataset.trail import read_kept
from schemas.arrow import MASKS, Outcome
from schemas.counting import counted

Ordinals = npt.NDArray[np.int64]
REPLAYED = "replayed"
MAX_SHOWN = 5
_log = logging.getLogger(__name__)
_SPAN = ["shard", "row", "start", "length"]


class Index(Protocol):
    """The index of duplicates, as far as retractions need it (dataset/duplicates.py)."""

    def resolve(self, rows: pa.Table) -> pa.Table:
        """Verdicts in commit order (duplicate_of, reason, similarity), all null for what is kept from now on, and where ``is_retraction`` is true."""

    def retracted_rows(self) -> tuple[Ordinals, pa.Array]:
        """Ordinals and ids of what it forgot since it was opened, in the order in which that happened."""

    def live_ids(self, doc_ids: set[str]) -> set[str]:
        """Those of the ids that a document has which is kept so far and was not retracted."""


class _Out(NamedTuple):
    """A document that was taken out, and by whom."""

    ordinal: int
    doc_id: str
    topic: str
    partition: int
    offset: int


_ASKED = ["topic", "partition", "offset", "doc_id", "replay_of", "fingerprint", "content_hash", "sketch"]
"""What the verdicts are made from."""


class Retractions:
    """``open`` before a batch, then ``admit`` and ``resolve`` each block in commit order, ``committed`` after the commit."""

    def __init__(self) -> None:
        self._clean_at: int | None = None
        """Version whose state this is, none while a batch is in it."""

    def open(self, dataset: Dataset | None) -> None:
        """Be at the state of that version."""
        version = dataset.version if dataset else 0
        if self._clean_at != version:
            self._tombstones = Tombstones(dataset)
        self._clean_at = None
        self._dataset = dataset
        self._firsts: Ordinals = np.concatenate([[0], np.cumsum(dataset.history["num_kept"])]) if dataset else np.zeros(1, np.int64)
        """Ordinal of the first kept document of each version, and at the end that of the next one to be kept."""
        self._num_kept = 0
        self._new: list[_Out] = []

    def committed(self, version: int) -> None:
        """The batch became that version."""
        self._clean_at = version

    def passed(self, version: int) -> None:
        """Go on to a version that added no documents and retracted none."""
        if self._clean_at == version - 1:
            self._clean_at = version

    def admit(self, block: pa.Table) -> pa.Table:
        """The block; a document that was not published after a retraction of its id, read earlier from another partition, is rejected in it."""
        return pa.concat_tables(self._admit(part) for part in _cut_behind_retractions(block))

    def _admit(self, block: pa.Table) -> pa.Table:
        late = self._tombstones.late(block)
        _warn_of_returning(self._tombstones.returning(block, late))
        self._tombstones.add(block)
        if not late.any():
            return block
        mask = pa.array(late)
        for name, text in (("outcome", str(Outcome.REJECTED)), ("reason", RULE)):
            place = block.schema.get_field_index(name)
            replaced = pc.if_else(mask, pa.scalar(text, pa.string()), block[name])
            block = block.set_column(place, block.schema.field(name), replaced)
        return block

    def may_concern(self, id_hashes: npt.NDArray[np.uint32]) -> bool:
        """Whether ``admit`` may change anything of a block without retractions whose documents have these hashes of ids (dedup/ids.short_hashes)."""
        return self._tombstones.may_concern(id_hashes)

    def kept(self, number: int) -> None:
        """So many documents were kept of a block that concerns nobody's retraction and was resolved without ``resolve``."""
        self._num_kept += number

    def resolve(self, block: pa.Table, index: Index) -> pa.Table:
        """One verdict for each candidate (rows with outcome kept) of the block, in order."""
        retraction = pc.equal(block["outcome"], Outcome.RETRACTED)
        asked = block.select(_ASKED).append_column("is_retraction", retraction)  # without the tokens: filtering copies
        rows = asked.filter(pc.or_(retraction, pc.equal(block["outcome"], Outcome.KEPT)))
        replays = np.flatnonzero(pc.and_(rows["replay_of"].is_valid(), pc.invert(rows["is_retraction"])).to_numpy())
        verdicts = self._with_replays(rows, replays.tolist(), index) if len(replays) else self._run(rows, index)
        return verdicts.filter(pc.invert(rows["is_retraction"]))

    def _with_replays(self, rows: pa.Table, replays: list[int], index: Index) -> pa.Table:
        """Verdicts of rows of which some are replays: the rows between those that may be known are resolved together."""
        doc_ids = rows["doc_id"].to_pylist()
        first_row = {doc_id: row for row, doc_id in reversed(list(enumerate(doc_ids)))}
        live = index.live_ids({doc_ids[row] for row in replays})
        verdicts, done = [], 0
        for replay in [row for row in replays if doc_ids[row] in live or first_row[doc_ids[row]] < row]:
            verdicts.append(self._run(rows.slice(done, replay - done), index))
            _follow(live, doc_ids[done:replay], rows.slice(done), verdicts[-1])
            done = replay
            if doc_ids[replay] in live:
                verdicts.append(pa.Table.from_pylist([{"duplicate_of": doc_ids[replay], "reason": REPLAYED}], schema=verdicts[-1].schema))
                done += 1
        return pa.concat_tables([*verdicts, self._run(rows.slice(done), index)])

    def masks(self, trail: Sequence[Path]) -> pa.Table:
        """Rows of MASKS for what this version's retractions took out; ``trail`` is its finished audit trail."""
        if not self._new:
            return MASKS.empty_table()
        _warn_of_retracted_copies(retracted_despite_republication(trail, {out.doc_id for out in self._new}, self._dataset))
        spans = self._rows_of(np.array(sorted(out.ordinal for out in self._new), dtype=np.int64), _SPAN, trail)
        rows = pl.DataFrame(self._new, schema=_Out._fields, orient="row").join(spans, on="ordinal", how="left", maintain_order="left", validate="1:1")
        return rows.select(MASKS.names).to_arrow().cast(MASKS)

    @property
    def _next_ordinal(self) -> int:
        return int(self._firsts[-1]) + self._num_kept

    def _run(self, rows: pa.Table, index: Index) -> pa.Table:
        """Resolve rows with no replay of a document that is kept, and take note of what became of them."""
        is_retraction = rows["is_retraction"].to_numpy()
        has_retractions = bool(is_retraction.any())
        num_before = len(index.retracted_rows()[0]) if has_retractions else 0
        verdicts = index.resolve(rows)
        kept = verdicts["reason"].is_null().to_numpy() & ~is_retraction
        if has_retractions:
            ordinals, doc_ids = (found[num_before:] for found in index.retracted_rows())
            next_ordinals = self._next_ordinal + np.cumsum(kept)
            self._take_out(rows.append_column("next_ordinal", pa.array(next_ordinals)).filter(rows["is_retraction"]), ordinals, doc_ids)
        self._num_kept += int(kept.sum())
        return verdicts

    def _take_out(self, retractions: pa.Table, ordinals: Ordinals, doc_ids: pa.Array) -> None:
        """Say which retraction forgot which document: both stand in the order in which that happened."""
        waiting = list(zip(ordinals.tolist(), doc_ids.to_pylist(), strict=True))[::-1]
        for event in retractions.select(["doc_id", "topic", "partition", "offset", "next_ordinal"]).to_pylist():
            while waiting and waiting[-1][1] == event["doc_id"] and waiting[-1][0] < event["next_ordinal"]:
                out = _Out(waiting.pop()[0], event["doc_id"], event["topic"], event["partition"], event["offset"])
                self._new.append(out)
        assert not waiting

    def _rows_of(self, ordinals: Ordinals, columns: list[str], trail: Sequence[Path] = ()) -> pl.DataFrame:
        """Columns of the kept documents with these ordinals, of which there is one, ascending, with ``ordinal`` and ``version``."""
        version_of = np.searchsorted(self._firsts, ordinals, side="right")
        frames = []
        for version in np.unique(version_of).tolist():
            chosen = ordinals[version_of == version]
            rows: pl.DataFrame = self._kept_rows(version, columns, trail)[chosen - self._firsts[version - 1]]
            frames.append(rows.with_columns(ordinal=pl.Series(chosen), version=pl.lit(version, pl.Int64)))
        return pl.concat(frames)

    def _kept_rows(self, version: int, columns: list[str], trail: Sequence[Path]) -> pl.DataFrame:
        if self._dataset is not None and version <= self._dataset.version:
            manifest = self._dataset.read(version)
            return read_kept([self._dataset.root / entry.path for entry in manifest.documents], columns)
        return read_kept(trail, columns)


def _cut_behind_retractions(block: pa.Table) -> list[pa.Table]:
    """The block, cut where a partition with retractions ends: what follows in other partitions is judged by them. No copies."""
    partitions = block["partition"].to_numpy()
    retracting = np.unique(partitions[pc.equal(block["outcome"], Outcome.RETRACTED).to_numpy()])
    ends = np.flatnonzero(np.diff(partitions)) + 1
    cuts = ends[np.isin(partitions[ends - 1], retracting)]
    return [block.slice(start, end - start) for start, end in itertools.pairwise([0, *cuts.tolist(), len(block)])]


def _warn_of_returning(doc_ids: list[str]) -> None:
    if doc_ids:
        _log.warning(
            "published again after a retraction of their ids, so they count as new: %s: %s; `headrace retract` takes them out again",
            counted(len(doc_ids), "document"),
            _shown(doc_ids),
        )


def _warn_of_retracted_copies(doc_ids: list[str]) -> None:
    if doc_ids:
        _log.warning(
            "retracted although published again later, because they were read before the retraction, in another partition: %s: %s; "
            "publish them once more, and key records by document id to keep their order",
            counted(len(doc_ids), "document"),
            _shown(doc_ids),
        )


def _shown(doc_ids: list[str]) -> str:
    return ", ".join(map(repr, doc_ids[:MAX_SHOWN])) + (" …" if len(doc_ids) > MAX_SHOWN else "")


def _follow(live: set[str], doc_ids: list[str], rows: pa.Table, verdicts: pa.Table) -> None:
    """Bring the ids that are kept up to date with rows that were resolved."""
    for doc_id, is_retraction, reason in zip(doc_ids, rows["is_retraction"].to_pylist(), verdicts["reason"].to_pylist(), strict=False):
        if is_retraction:
            live.discard(doc_id)
        elif reason is None:
            live.add(doc_id)
