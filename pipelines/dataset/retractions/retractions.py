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
Who has an id that is retracted, the index of duplicates finds (dedup/resolve.py); who has one that is replayed, known.py. Costs without
retractions and replays: a look at two columns per block.
"""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.retractions.known import KnownIds, Ordinals, first_ordinals, hash_ids, read_kept
from pipelines.dataset.retractions.masks import retracted_ordinals
from pipelines.dataset.retractions.tombstones import RULE, Tombstones
from schemas.arrow import MASKS, Outcome

REPLAYED = "replayed"
_SPAN = ["shard", "row", "start", "length"]


class Index(Protocol):
    """The index of duplicates, as far as retractions need it (dataset/duplicates.py)."""

    def resolve(self, rows: pa.Table) -> pa.Table:
        """Verdicts in commit order (duplicate_of, reason, similarity), all null for what is kept from now on, and where ``is_retraction`` is true."""

    def retracted_rows(self) -> tuple[Ordinals, pa.Array]:
        """Ordinals and ids of what it forgot since it was opened, in the order in which that happened."""


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
            self._out = set(retracted_ordinals(dataset).tolist()) if dataset else set()
            self._known: KnownIds | None = None
        self._clean_at = None
        self._dataset = dataset
        self._firsts = first_ordinals(dataset) if dataset else np.zeros(1, np.int64)
        self._kept: list[pa.Array] = []
        """Ids of the documents that this version has kept so far."""
        self._num_kept = 0
        self._new: list[_Out] = []

    def committed(self, version: int) -> None:
        """The batch became that version."""
        self._clean_at = version

    def admit(self, block: pa.Table) -> pa.Table:
        """The block, all of one partition, without the documents that were published before their retraction, which stood in another partition:
        those are rejected.
        """
        late = self._tombstones.late(block)
        self._tombstones.add(block)
        if not late.any():
            return block
        mask = pa.array(late)
        for name, text in (("outcome", str(Outcome.REJECTED)), ("reason", RULE)):
            place = block.schema.get_field_index(name)
            replaced = pc.if_else(mask, pa.scalar(text, pa.string()), block[name])
            block = block.set_column(place, block.schema.field(name), replaced)
        return block

    def resolve(self, block: pa.Table, index: Index) -> pa.Table:
        """One verdict for each candidate (rows with outcome kept) of the block, in order."""
        retraction = pc.equal(block["outcome"], Outcome.RETRACTED)
        asked = block.select(_ASKED).append_column("is_retraction", retraction)  # without the tokens: filtering copies
        rows = asked.filter(pc.or_(retraction, pc.equal(block["outcome"], Outcome.KEPT)))
        verdicts, done = [], 0
        for replay, doc_id in self._suspects(rows):
            verdicts.append(self._run(rows.slice(done, replay - done), index))
            done = replay
            if self._is_live(doc_id):
                verdicts.append(pa.Table.from_pylist([{"duplicate_of": doc_id, "reason": REPLAYED}], schema=verdicts[-1].schema))
                done += 1
        verdicts.append(self._run(rows.slice(done), index))
        return pa.concat_tables(verdicts).filter(pc.invert(rows["is_retraction"]))

    def masks(self, documents: Path) -> pa.Table:
        """Rows of MASKS for what this version's retractions took out; ``documents`` is its finished audit trail."""
        if not self._new:
            return MASKS.empty_table()
        spans = self._rows_of(np.array(sorted(out.ordinal for out in self._new), dtype=np.int64), _SPAN, documents)
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
        doc_ids = rows["doc_id"].filter(pa.array(kept))
        if self._known is not None:
            self._known.add(hash_ids(pl.Series(doc_ids)), self._next_ordinal)
        self._kept += doc_ids.chunks
        self._num_kept += len(doc_ids)
        return verdicts

    def _take_out(self, retractions: pa.Table, ordinals: Ordinals, doc_ids: pa.Array) -> None:
        """Say which retraction forgot which document: both stand in the order in which that happened."""
        waiting = list(zip(ordinals.tolist(), doc_ids.to_pylist(), strict=True))[::-1]
        for event in retractions.select(["doc_id", "topic", "partition", "offset", "next_ordinal"]).to_pylist():
            while waiting and waiting[-1][1] == event["doc_id"] and waiting[-1][0] < event["next_ordinal"]:
                out = _Out(waiting.pop()[0], event["doc_id"], event["topic"], event["partition"], event["offset"])
                self._new.append(out)
                self._out.add(out.ordinal)
        assert not waiting

    def _suspects(self, rows: pa.Table) -> list[tuple[int, str]]:
        """Replays whose id is known, or stands in an earlier row: (row, id)."""
        replays = np.flatnonzero(pc.and_(rows["replay_of"].is_valid(), pc.invert(rows["is_retraction"])).to_numpy())
        if not len(replays):
            return []
        doc_ids = rows["doc_id"].to_pylist()
        first_row = {doc_id: row for row, doc_id in reversed(list(enumerate(doc_ids)))}
        live = self._live({doc_ids[row] for row in replays})
        return [(row, doc_ids[row]) for row in replays.tolist() if doc_ids[row] in live or first_row[doc_ids[row]] < row]

    def _is_live(self, doc_id: str) -> bool:
        return bool(self._live({doc_id}))

    def _live(self, doc_ids: set[str]) -> set[str]:
        """Those of the ids that a document has which is kept so far and not out."""
        if self._known is None:
            self._known = KnownIds(self._dataset)
            self._known.add(hash_ids(pl.Series(pa.chunked_array(self._kept, pa.string()))), int(self._firsts[-1]))
        ordinals = self._known.candidates(hash_ids(pl.Series(list(doc_ids), dtype=pl.String)))
        ordinals = np.array([ordinal for ordinal in ordinals.tolist() if ordinal not in self._out], dtype=np.int64)
        return doc_ids.intersection(self._ids_of(ordinals))

    def _ids_of(self, ordinals: Ordinals) -> list[str]:
        first = int(self._firsts[-1])
        earlier = ordinals[ordinals < first]
        own: list[str] = pa.chunked_array(self._kept, pa.string()).take(pa.array(ordinals[len(earlier) :] - first)).to_pylist()
        return [*self._rows_of(earlier, ["doc_id"])["doc_id"].to_list(), *own] if len(earlier) else own

    def _rows_of(self, ordinals: Ordinals, columns: list[str], documents: Path | None = None) -> pl.DataFrame:
        """Columns of the kept documents with these ordinals, of which there is one, ascending, with ``ordinal`` and ``version``."""
        version_of = np.searchsorted(self._firsts, ordinals, side="right")
        frames = []
        for version in np.unique(version_of).tolist():
            chosen = ordinals[version_of == version]
            rows: pl.DataFrame = self._kept_rows(version, columns, documents)[chosen - self._firsts[version - 1]]
            frames.append(rows.with_columns(ordinal=pl.Series(chosen), version=pl.lit(version, pl.Int64)))
        return pl.concat(frames)

    def _kept_rows(self, version: int, columns: list[str], documents: Path | None) -> pl.DataFrame:
        if self._dataset is not None and version <= self._dataset.version:
            manifest = self._dataset.read(version)
            return read_kept([self._dataset.root / entry.path for entry in manifest.documents], columns)
        assert documents is not None
        return read_kept([documents], columns)
