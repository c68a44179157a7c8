"""The accounts at the end of a soak: what stands in Kafka against what the dataset says became of it.

Everything is read anew, from the log itself and from the files of the dataset; nothing is taken over from the processes that ran. Costs
about 100 bytes of memory per record of the log.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import polars as pl
from kafka import TopicPartition

from benchmarks.soak.traffic import ENTRY, GARBAGE
from pipelines.dataset.dataset import Dataset
from pipelines.dataset.retractions.masks import read_masks
from pipelines.kafka.clients import open_consumer
from pipelines.kafka.letters import read_letters
from pipelines.kafka.topics import topic_names
from schemas.settings import Settings

SHOWN = 5
_LOG = {"partition": pl.Int32, "offset": pl.Int64, "timestamp_ms": pl.Int64, "crc": pl.UInt32, "kind": pl.String, "id": pl.String, "text": pl.UInt64}
_PLACE = ["partition", "offset"]
_COLUMNS = ["partition", "offset", "outcome", "reason", "doc_id", "timestamp_ms"]
POSSIBLE = {
    "garbage": {"dead"},
    "retraction": {"retracted"},
    "document": {"kept", "rejected", "duplicate"},
}
"""What may become of each kind of record."""


def read_log(settings: Settings) -> pl.DataFrame:
    """Every record of the documents topic, in order of partitions and offsets."""
    topic = topic_names(settings).documents
    rows: list[tuple[Any, ...]] = []
    with open_consumer(settings) as consumer:
        keys = [TopicPartition(topic, partition) for partition in sorted(consumer.partitions_for_topic(topic))]
        ends = consumer.end_offsets(keys)
        consumer.assign(keys)
        for key in keys:
            consumer.seek(key, 0)
        while any(consumer.position(key) < ends[key] for key in keys):
            rows += [_row(record) for records in consumer.poll(timeout_ms=1_000).values() for record in records]
    return pl.DataFrame(rows, schema=_LOG, orient="row").sort(_PLACE)


def _row(record: Any) -> tuple[Any, ...]:
    return record.partition, record.offset, record.timestamp, crc32(record.value or b""), *_content(record)


def _content(record: Any) -> tuple[str, str | None, int | None]:
    """Kind, id, and hash of the text."""
    if record.value is None:
        return "retraction", record.key.decode(), None
    if record.value in GARBAGE:
        return "garbage", None, None
    data = json.loads(record.value)
    if record.headers:
        return "retraction", data["id"], None
    return "document", data.get("id"), int.from_bytes(hashlib.blake2b(data["text"].encode(), digest_size=8).digest())


def read_ledger(paths: list[Path]) -> pl.DataFrame:
    """Everything that was acknowledged; a line that a SIGKILL cut off does not count."""
    kinds = np.dtype([("partition", "<u4"), ("offset", "<u8"), ("crc", "<u4")])
    assert kinds.itemsize == ENTRY.size
    found = [np.frombuffer(data := path.read_bytes(), kinds, len(data) // ENTRY.size) for path in paths]
    entries = np.concatenate([np.empty(0, kinds), *found])
    return pl.DataFrame({name: entries[name] for name in ("partition", "offset", "crc")}).cast({name: _LOG[name] for name in (*_PLACE, "crc")})


def read_audit(dataset: Dataset) -> pl.DataFrame:
    """What became of every offset, in commit order; ``ordinal`` numbers the kept documents, ``is_live`` says that no retraction took one out."""
    manifests = dataset.manifests()
    rows = pl.concat(
        pl.read_parquet(dataset.root / entry.path, columns=_COLUMNS).with_columns(version=manifest.version, committed_ms=_ms(manifest))
        for manifest in manifests
        for entry in manifest.documents
    )
    masked = [ordinal for manifest in manifests for ordinal in read_masks(dataset.root, manifest)["ordinal"].to_pylist()]
    kept = pl.col("outcome") == "kept"
    ordinal = pl.when(kept).then(kept.cast(pl.Int64).cum_sum() - 1)
    rows = rows.with_columns(ordinal=ordinal)
    return rows.with_columns(is_live=kept & ~pl.col("ordinal").is_in(masked))


def _ms(manifest: Any) -> int:
    return int(manifest.created_at.timestamp() * 1000)


def problems(settings: Settings, dataset: Dataset, log: pl.DataFrame, audit: pl.DataFrame, ledger: pl.DataFrame) -> Iterator[str]:
    """A sentence for everything that is not as promised."""
    yield from _offsets(log, audit)
    yield from _sums(dataset, log, audit)
    yield from _acknowledged(log, ledger)
    both = log.join(audit, on=_PLACE, suffix="_audit")
    yield from _outcomes(both)
    yield from _once(both)
    yield from _retractions(both)
    yield from _dead_letters(settings, audit)


def _offsets(log: pl.DataFrame, audit: pl.DataFrame) -> Iterator[str]:
    """Every offset of every partition has exactly one outcome."""
    for partition, end in log.group_by("partition").agg(pl.col("offset").max() + 1).sort("partition").iter_rows():
        for name, frame in (("the log", log), ("the audit trail", audit)):
            offsets = frame.filter(pl.col("partition") == partition)["offset"].sort().to_numpy()
            if not np.array_equal(offsets, np.arange(end)):
                yield f"partition {partition}: {name} has {len(offsets):,} rows ({len(np.unique(offsets)):,} distinct) for offsets 0 to {end - 1}"


def _sums(dataset: Dataset, log: pl.DataFrame, audit: pl.DataFrame) -> Iterator[str]:
    totals = dataset.manifest.totals
    counted = dict(audit.group_by("outcome").len().iter_rows())
    told = {str(outcome): number for outcome, number in totals.outcomes.items() if number}
    if not len(log) == len(audit) == totals.num_records == sum(told.values()):
        yield f"sums differ: log {len(log):,}, audit trail {len(audit):,}, manifest {totals.num_records:,}, outcomes {sum(told.values()):,}"
    if counted != told:
        yield f"outcomes differ: audit trail {counted}, manifest {told}"
    if (live := int(audit["is_live"].sum())) != told["kept"] - totals.num_masked_documents:
        yield f"{live:,} documents are kept and not masked; the manifest says {told['kept']:,} less {totals.num_masked_documents:,}"


def _acknowledged(log: pl.DataFrame, ledger: pl.DataFrame) -> Iterator[str]:
    """What the broker acknowledged is in the log, where it said and as it was."""
    lost = ledger.join(log, on=[*_PLACE, "crc"], how="anti")
    if len(lost):
        yield f"{len(lost):,} of {len(ledger):,} acknowledged records are not in the log, or are others: {_shown(lost)}"
    if len(twice := ledger.filter(ledger.select(_PLACE).is_duplicated())):
        yield f"{len(twice):,} acknowledgements name an offset that another one names: {_shown(twice)}"


def _outcomes(both: pl.DataFrame) -> Iterator[str]:
    """What became of a record fits what it is, and the audit trail tells of this record and not of another one."""
    for kind, possible in POSSIBLE.items():
        wrong = both.filter((pl.col("kind") == kind) & ~pl.col("outcome").is_in(list(possible)))
        if len(wrong):
            yield f"{len(wrong):,} records are a {kind} and something else than {sorted(possible)}: {_shown(wrong)}"
    for name in ("id", "timestamp_ms"):
        other = both.filter(pl.col(name).is_not_null() & (pl.col(name) != pl.col("doc_id" if name == "id" else f"{name}_audit")))
        if len(other):
            yield f"{len(other):,} records have another {name} in the audit trail: {_shown(other)}"


def _once(both: pl.DataFrame) -> Iterator[str]:
    """No text is there twice."""
    live = both.filter("is_live")
    if len(twice := live.filter(live["text"].is_duplicated())):
        yield f"{len(twice):,} documents are kept and another one with the same text is, too: {_shown(twice)}"


def _retractions(both: pl.DataFrame) -> Iterator[str]:
    """What was published before its retraction is not live; what no retraction names is."""
    documents = both.filter((pl.col("outcome") == "kept") & pl.col("id").is_not_null())
    retractions = both.filter(pl.col("kind") == "retraction").select("id", *_PLACE, "timestamp_ms")
    pairs = documents.join(retractions, on="id", suffix="_r")
    here = (pl.col("partition") == pl.col("partition_r")) & (pl.col("offset") < pl.col("offset_r"))
    elsewhere = (pl.col("partition") != pl.col("partition_r")) & (pl.col("timestamp_ms") <= pl.col("timestamp_ms_r"))
    wrong = pairs.filter((here | elsewhere) & pl.col("is_live")).unique(_PLACE)
    if len(wrong):
        yield f"{len(wrong):,} documents were published before their retraction and are still there: {_shown(wrong)}"
    lost = documents.join(retractions, on="id", how="anti").filter(~pl.col("is_live"))
    if len(lost):
        yield f"{len(lost):,} documents are masked though no retraction names them: {_shown(lost)}"


def _dead_letters(settings: Settings, audit: pl.DataFrame) -> Iterator[str]:
    """Every dead record has a dead letter, and no other has."""
    topic = topic_names(settings).documents
    found = {letter.place for letter in read_letters(settings)}
    dead = audit.filter(pl.col("outcome") == "dead").select(_PLACE).iter_rows()
    expected = {f"{topic}/{partition}/{offset}" for partition, offset in dead}
    if found != expected:
        yield f"dead letters: {len(expected - found):,} of {len(expected):,} are missing, {len(found - expected):,} are of records that did not die"


def _shown(rows: pl.DataFrame) -> str:
    columns = [name for name in ("partition", "offset", "outcome", "reason", "id", "doc_id") if name in rows.columns]
    return "; ".join(str(row) for row in rows.select(columns).head(SHOWN).iter_rows())
