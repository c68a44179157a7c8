"""Retractions take documents out, in commit order; replayed dead letters enter once.

What a retraction of id X does, be it a null value or an event:

- every document with id X that was kept before it in commit order (an earlier version, or before it in the same one) is out: its span
  is masked from this version on, and its fingerprint is forgotten, so that a near duplicate may enter behind the retraction;
- a document with id X that comes after it in the same partition enters anew: there the order is that of the producer;
- a document with id X that comes after it in another partition was not necessarily written after it. It enters if its Kafka timestamp
  is later than the retraction's; else it is rejected under the rule ``retracted``. A missing timestamp counts as not later.

So where the order is not known, privacy wins: a document may be lost that somebody published again within the same moments under
another key, but none is kept that was published before its retraction. A retraction of an unknown id, or a second one, changes nothing.

Replays: a record that carries REPLAY_HEADER and whose id is that of a document that is kept and not retracted is a duplicate of it, for
the reason ``replayed``, whatever its text. So replaying a dead letter twice, or one that its producer has mended meanwhile, adds nothing.

State is a function of the committed versions; like dataset/duplicates.py, it is read again after a batch that was not committed.
Costs without retractions and replays: a look at two columns per block.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.known import KnownIds, Ordinals, first_ordinals, hash_ids, read_kept
from pipelines.dataset.masks import read_masks
from pipelines.dataset.tombstones import RULE, Tombstones
from schemas.arrow import MASKS, Outcome

REPLAYED = "replayed"
_SPAN = ["doc_id", "shard", "row", "start", "length"]


class Index(Protocol):
    """The index of duplicates, as far as retractions need it (dataset/duplicates.py)."""

    def resolve(self, rows: pa.Table) -> pa.Table:
        """Verdicts for candidates in commit order: duplicate_of, reason, similarity; all null for those that are kept from now on."""

    def retract(self, ordinals: Ordinals) -> None:
        """Forget these kept documents."""


class _Event(NamedTuple):
    """A row of a block that asks which documents have its id."""

    num_before: int
    """Candidates before it in the block."""
    doc_id: str
    is_retraction: bool
    topic: str
    partition: int
    offset: int


class _Out(NamedTuple):
    """A document that was taken out, and by whom."""

    ordinal: int
    doc_id: str
    topic: str
    partition: int
    offset: int


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
            self._out = _retracted(dataset)
            self._known: KnownIds | None = None
        self._clean_at = None
        self._dataset = dataset
        self._firsts = first_ordinals(dataset) if dataset else np.zeros(1, np.int64)
        self._version = version + 1
        self._kept: list[pa.Array] = []
        """Ids of the documents that this version has kept so far."""
        self._num_kept = 0
        self._new: list[_Out] = []

    def committed(self, version: int) -> None:
        """The batch became that version."""
        self._clean_at = version

    def retracted(self) -> Ordinals:
        """Ordinals of all documents that are out, ascending."""
        return np.array(sorted(self._out), dtype=np.int64)

    def admit(self, block: pa.Table) -> pa.Table:
        """The block without the documents that were published before their retraction, which stood in another partition: those are rejected."""
        late = self._tombstones.late(block)
        self._tombstones.add(block)
        if not late.any():
            return block
        mask = pa.array(late)
        for name, text in (("outcome", str(Outcome.REJECTED)), ("reason", RULE)):
            index = block.schema.get_field_index(name)
            replaced = pc.if_else(mask, pa.scalar(text, pa.string()), block[name])
            block = block.set_column(index, block.schema.field(name), replaced)
        return block

    def resolve(self, block: pa.Table, index: Index) -> pa.Table:
        """One verdict for each candidate (rows with outcome kept) of the block, in order."""
        candidates = block.filter(pc.equal(block["outcome"], Outcome.KEPT))
        events = list(_events(block))
        turn = _Turn(self, index, candidates, {event.doc_id for event in events})
        for event in events:
            turn.take(event)
        verdicts = turn.finish()
        if self._known is not None:
            kept = candidates.filter(pc.is_null(verdicts["reason"]))["doc_id"]
            self._known.add(hash_ids(_series(kept)), self.num_kept - len(kept))
        return verdicts

    @property
    def num_kept(self) -> int:
        """Ordinal of the next document to be kept."""
        return int(self._firsts[-1]) + self._num_kept

    def keep(self, doc_ids: pa.ChunkedArray) -> None:
        """These are the next documents that are kept."""
        self._kept += doc_ids.chunks
        self._num_kept += len(doc_ids)

    def live(self, doc_ids: set[str]) -> dict[str, list[int]]:
        """Ordinals by id of the documents with these ids that are kept so far and not out, except those of the block at hand."""
        if not doc_ids:
            return {}
        if self._known is None:
            self._known = KnownIds(self._dataset)
            self._known.add(hash_ids(_series(pa.chunked_array(self._kept, pa.string()))), int(self._firsts[-1]))
        ordinals = self._known.candidates(hash_ids(pl.Series(list(doc_ids), dtype=pl.String)))
        found = defaultdict(list)
        for ordinal, doc_id in zip(ordinals.tolist(), self._ids_of(ordinals), strict=True):
            if doc_id in doc_ids and ordinal not in self._out:
                found[doc_id].append(ordinal)
        return found

    def take_out(self, outs: list[_Out]) -> None:
        """Remember what is out."""
        self._out.update(out.ordinal for out in outs)
        self._new += outs

    def masks(self, documents: Path) -> pa.Table:
        """Rows of MASKS for what this version's retractions took out; ``documents`` is its finished audit trail."""
        if not self._new:
            return MASKS.empty_table()
        ordinals = np.array([out.ordinal for out in self._new], dtype=np.int64)
        spans = self._rows_of(ordinals, _SPAN, documents)
        events = pl.DataFrame(self._new, schema=_Out._fields, orient="row")
        rows = events.join(spans.drop("doc_id"), on="ordinal", how="left", maintain_order="left", validate="1:1")
        return rows.select(MASKS.names).to_arrow().cast(MASKS)

    def _ids_of(self, ordinals: Ordinals) -> list[str]:
        first = int(self._firsts[-1])
        earlier = ordinals[ordinals < first]
        own: list[str] = pa.chunked_array(self._kept, pa.string()).take(pa.array(ordinals[len(earlier) :] - first)).to_pylist()
        return [*self._rows_of(earlier, ["doc_id"])["doc_id"].to_list(), *own]

    def _rows_of(self, ordinals: Ordinals, columns: list[str], documents: Path | None = None) -> pl.DataFrame:
        """Columns of the kept documents with these ordinals, ascending, with ``ordinal`` and ``version``."""
        ordinals = np.sort(ordinals)
        version_of = np.searchsorted(self._firsts, ordinals, side="right")
        frames = [pl.DataFrame(schema={"doc_id": pl.String})]
        for version in np.unique(version_of).tolist():
            chosen = ordinals[version_of == version]
            rows = self._kept_rows(version, columns, documents)[chosen - self._firsts[version - 1]]
            frames.append(rows.with_columns(ordinal=pl.Series(chosen), version=pl.lit(version, pl.Int64)))
        return pl.concat(frames[1:] or frames)

    def _kept_rows(self, version: int, columns: list[str], documents: Path | None) -> pl.DataFrame:
        if self._dataset is not None and version <= self._dataset.version:
            return read_kept(self._dataset, self._dataset.manifests()[version - 1], columns)
        assert documents is not None
        return pl.scan_parquet(documents).filter(pl.col("outcome") == Outcome.KEPT).select(columns).collect()


class _Turn:
    """One block on its way through: candidates go to the index in runs, cut where a retraction takes effect between them."""

    def __init__(self, state: Retractions, index: Index, candidates: pa.Table, asked: set[str]) -> None:
        self._state = state
        self._index = index
        self._candidates = candidates
        self._earlier = state.live(asked)
        self._asked = pa.array(sorted(asked), pa.string())
        self._verdicts: list[pa.Table] = []
        self._done = 0
        self._fresh: dict[str, list[int]] = defaultdict(list)
        """Ordinals by id of what this block has kept, of ids that are asked for."""

    def take(self, event: _Event) -> None:
        """A retraction, or a replay that is a candidate itself."""
        pending = self._candidates["doc_id"].slice(self._done, event.num_before - self._done)
        if pc.any(pc.equal(pending, event.doc_id)).as_py():
            self._run(event.num_before)
        live = self._earlier.get(event.doc_id, []) + self._fresh.get(event.doc_id, [])
        if not live:
            return
        self._run(event.num_before)
        if event.is_retraction:
            self._retract(event, live)
        else:
            self._skip(event.doc_id)

    def finish(self) -> pa.Table:
        """Verdicts of all candidates."""
        self._run(len(self._candidates))
        return pa.concat_tables(self._verdicts)

    def _run(self, end: int) -> None:
        """Resolve the candidates up to ``end``."""
        rows = self._candidates.slice(self._done, end - self._done)
        if self._done and not len(rows):
            return
        verdicts = self._index.resolve(rows)
        kept = rows["doc_id"].filter(pc.is_null(verdicts["reason"]))
        first = self._state.num_kept
        for position in np.flatnonzero(pc.is_in(kept, self._asked).to_numpy()).tolist():
            self._fresh[kept[position].as_py()].append(first + position)
        self._state.keep(kept)
        self._verdicts.append(verdicts)
        self._done = end

    def _retract(self, event: _Event, live: list[int]) -> None:
        self._index.retract(np.array(live, dtype=np.int64))
        self._state.take_out([_Out(ordinal, event.doc_id, *event[-3:]) for ordinal in live])
        self._earlier.pop(event.doc_id, None)
        self._fresh.pop(event.doc_id, None)

    def _skip(self, doc_id: str) -> None:
        schema = self._verdicts[-1].schema
        self._verdicts.append(pa.Table.from_pylist([{"duplicate_of": doc_id, "reason": REPLAYED}], schema=schema))
        self._done += 1


def _events(block: pa.Table) -> Iterator[_Event]:
    """Retractions and replays that are candidates, in order."""
    candidate, retraction = pc.equal(block["outcome"], Outcome.KEPT), pc.equal(block["outcome"], Outcome.RETRACTED)
    asking = pc.or_(retraction, pc.and_(candidate, block["is_replay"].fill_null(False)))
    if not pc.any(asking).as_py():
        return
    is_candidate = candidate.to_numpy().astype(np.int64)
    rows = block.select(["doc_id", "topic", "partition", "offset"]).append_column("is_retraction", retraction)
    rows = rows.append_column("num_before", pa.array(np.cumsum(is_candidate) - is_candidate))
    for row in rows.filter(asking).to_pylist():
        yield _Event(**row)


def _retracted(dataset: Dataset | None) -> set[int]:
    """Ordinals of the documents that versions 1..N took out."""
    if dataset is None:
        return set()
    return {ordinal for manifest in dataset.manifests() if manifest.masks for ordinal in read_masks(dataset.root, manifest)["ordinal"].to_pylist()}


def _series(doc_ids: pa.ChunkedArray) -> pl.Series:
    return pl.Series(doc_ids)
