"""Texts for the report: kept documents from their shards, rejected ones from Kafka, both cut, and never more than MAX_TEXTS.

Rejected texts are stored nowhere but in the stream: each is read back from where it stood, as long as the topic is still the same one and
retention has not taken it. Whatever cannot be read is left out and noted; a report never fails for want of an example.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pyarrow as pa

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.shard_maps import FEW_MAPS, ShardMaps
from pipelines.dataset.trail import scan_trail
from pipelines.kafka.reading import Slice, read_slice
from pipelines.kafka.topics import topic_ids
from pipelines.steps.decode import decode
from pipelines.steps.pii.redact import redact
from pipelines.tokenizers.tokenizer import load_tokenizer
from schemas.arrow import Outcome
from schemas.errors import BrokerError, DatasetError, HeadraceError, SourceError
from schemas.manifest import DatasetManifest
from schemas.settings import Settings
from schemas.settings_pii import PiiAction, PiiSettings

MAX_TEXTS = 60
MAX_TEXT_CHARS = 280
MAX_TEXT_TOKENS = 160
KEPT_LANGUAGES, KEPT_PER_LANGUAGE = 4, 2
TIMEOUT_S = 5.0
"""Longest wait for the broker: a report is for a person who waits."""
Position = tuple[str, int, int]


@dataclass(frozen=True)
class Example:
    """A document, with its text if that could be had."""

    doc_id: str | None
    topic: str
    partition: int
    offset: int
    language: str | None
    num_chars: int | None
    text: str | None = None

    @property
    def position(self) -> Position:
        """Where its record stands."""
        return self.topic, self.partition, self.offset


def concealed(values: Sequence[str], settings: PiiSettings) -> list[str]:
    """The texts with a placeholder for all personal data and secrets of every type, whatever the settings do with them elsewhere."""
    actions = {name: "redact" for name, value in settings if value in get_args(PiiAction)}
    hidden: list[str] = redact(pa.array(values, pa.large_string()), settings.model_copy(update=actions)).texts.to_pylist()
    return hidden


def cut(value: str) -> str:
    """The first MAX_TEXT_CHARS characters."""
    return value if len(value) <= MAX_TEXT_CHARS else value[:MAX_TEXT_CHARS].rstrip() + " …"


def scan(root: Path, manifests: Sequence[DatasetManifest]) -> pl.LazyFrame:
    """The audit trail of these versions; a version that compacts the index has none. That of all versions: ``scan_trail`` of the dataset's paths."""
    return scan_trail([root / entry.path for manifest in manifests for entry in manifest.documents])


def retracted_ids(dataset: Dataset) -> frozenset[str]:
    """Ids that a retraction named in any version, later ones included: their texts are shown nowhere."""
    found = (
        scan_trail(Dataset(dataset.root).paths("documents"))
        .filter((pl.col("outcome") == Outcome.RETRACTED) & pl.col("doc_id").is_not_null())
        .select("doc_id")
        .unique()
        .collect()
    )
    return frozenset(found["doc_id"].to_list())


def kept_examples(root: Path, dataset: Dataset, window: Sequence[DatasetManifest], pii: PiiSettings, notes: list[str]) -> tuple[Example, ...]:
    """The first kept documents of the window's largest languages, decoded from their tokens."""
    kept = (
        scan(root, window)
        .filter((pl.col("outcome") == Outcome.KEPT) & pl.col("shard").is_not_null())
        .with_columns(pl.col("language").fill_null("und"))
    )
    kept = kept.filter(~pl.col("doc_id").is_in(list(retracted_ids(dataset))))
    columns = ("doc_id", "topic", "partition", "offset", "num_chars", "shard", "row", "start", "length")
    grouped = kept.group_by("language").agg(pl.len().alias("count"), *(pl.col(name).head(KEPT_PER_LANGUAGE) for name in columns))
    rows = grouped.sort("count", "language", descending=[True, False]).head(KEPT_LANGUAGES).collect().explode(*columns).to_dicts()
    try:
        tokenizer = load_tokenizer(root, dataset.tokenizer)
        maps = ShardMaps(dataset, FEW_MAPS)
        spans = [maps.span(row["shard"], row["row"], row["start"], row["length"])[:-1][:MAX_TEXT_TOKENS] for row in rows]
    except DatasetError as error:
        notes.append(f"kept documents are not shown: {error}")
        return ()
    texts = concealed([tokenizer.decode(span) for span in spans], pii)
    return tuple(_kept_example(row, text) for row, text in zip(rows, texts, strict=True))


def _kept_example(row: dict[str, Any], text: str) -> Example:
    return Example(row["doc_id"], row["topic"], row["partition"], row["offset"], row["language"], row["num_chars"], cut(text))


def texts_in_kafka(settings: Settings, manifest: DatasetManifest, wanted: Sequence[Example], notes: list[str]) -> dict[Position, Example]:
    """The examples whose record the broker still has, with their text."""
    if not settings.kafka.bootstrap_servers:
        notes.append("texts of rejected documents are not shown: no broker to read them from; give --bootstrap-servers HOST:PORT")
        return {}
    quick = _impatient(settings)
    found: dict[Position, Example] = {}
    try:
        topics = sorted({example.topic for example in wanted})
        if topic_ids(quick, topics) != {topic: manifest.topic_ids.get(topic) for topic in topics}:
            notes.append("texts of rejected documents are not shown: the topic is not the one that was read")
            return {}
        for example in wanted[:MAX_TEXTS]:
            text = _text(example, quick)
            if text is not None:
                found[example.position] = replace(example, text=cut(concealed([text], settings.pii)[0]))
    except (BrokerError, SourceError) as error:
        notes.append(f"texts of rejected documents are not shown: {error}")
    missing = min(len(wanted), MAX_TEXTS) - len(found)
    if found and missing:
        notes.append(f"{missing} texts of rejected documents are no longer in Kafka")
    return found


def _text(example: Example, settings: Settings) -> str | None:
    """One record, decoded; None if retention took it or it is not what it was."""
    topic, partition, offset = example.position
    try:
        records = read_slice(Slice(topic, partition, offset, offset + 1), settings)
    except SourceError:
        return None
    return _decoded(records, settings)


def _decoded(records: pa.Table, settings: Settings) -> str | None:
    try:
        text: str | None = decode(records, settings)["text"][0].as_py()
    except HeadraceError:
        return None
    return text


def _impatient(settings: Settings) -> Settings:
    kafka = settings.kafka.model_copy(update={"request_timeout_s": min(TIMEOUT_S, settings.kafka.request_timeout_s)})
    ingest = settings.ingest.model_copy(update={"stall_timeout_s": min(TIMEOUT_S, settings.ingest.stall_timeout_s)})
    return settings.model_copy(update={"kafka": kafka, "ingest": ingest})
