"""Manifests: only files that a manifest lists belong to the dataset.

A dataset manifest is one commit of the dataset's log (DESIGN §4): it lists what *this* version adds; the dataset at version N is the
union of manifests 1..N. A model manifest says what a model version was made of. All are JSON, closed (unknown keys are errors),
and self-consistent: a manifest whose counts do not add up cannot be built.
"""

import hashlib
from datetime import datetime
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from schemas.arrow import Outcome, Split
from schemas.lost_offsets import AcceptedLoss
from schemas.record import Record
from schemas.statistics import VersionStatistics

FORMAT = 1
"""Version of the manifest format itself."""


def _stays_inside(path: str) -> str:
    """Refuse paths that could leave the root: absolute ones, ``..``, and what the operating system does not take."""
    if not path or path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise ValueError(f"path {path!r} leaves the root")
    return path


RelativePath = Annotated[str, AfterValidator(_stays_inside)]
"""Relative to the root, with forward slashes; never leaves the root."""


class FileEntry(Record):
    """A file that a manifest makes visible."""

    path: RelativePath
    """Relative to the root, with forward slashes; never leaves the root."""
    rows: int = Field(ge=0)
    """Rows in the file."""
    size_bytes: int = Field(ge=0)
    """Size of the file."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the file's bytes, hex."""


class ShardEntry(FileEntry):
    """A shard of packed token rows."""

    split: Split
    """Train or validation."""
    tokens: int = Field(ge=0)
    """Token ids in the shard, end-of-text tokens included, padding not."""
    documents: int = Field(ge=0)
    """Documents in the shard."""


class MergedShard(ShardEntry):
    """A file with the unchanged rows of several consecutive shards of a split. Readers of every version use it instead of these shards.

    Rows keep the numbers that they got when they were committed, so ``first_row`` and ``rows`` say which shards these are.
    """

    first_row: int = Field(ge=0)
    """Number of its first row among all rows of the split, in the order of versions."""
    copies: int = Field(ge=1)
    """How often its rows were copied since they were committed: once more than in the files from which it was made."""


class OffsetRange(Record):
    """Offsets [start, end) of one partition."""

    start: int = Field(ge=0)
    """First offset read."""
    end: int = Field(ge=0)
    """The next version's start: the consumer's position, past markers and gaps."""

    @model_validator(mode="after")
    def is_forward(self) -> Self:
        """Refuse ranges that run backwards."""
        if self.end < self.start:
            raise ValueError(f"offset range runs backwards: start {self.start}, end {self.end}")
        return self

    def __len__(self) -> int:
        return self.end - self.start


class TokenizerRef(Record):
    """Which tokenizer made the ids."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of tokenizer.json."""
    path: RelativePath
    """Folder with the Hugging Face files, relative to the root: ``tokenizer/<sha>``."""
    vocab_size: int = Field(ge=1)
    """Number of token ids, special tokens included."""
    eos_token_id: int = Field(ge=0)
    """End of text; ends every document."""
    pad_token_id: int = Field(ge=0)
    """Fills the last row of a shard."""
    requested_vocab_size: int | None = None
    """``tokenizer.vocab_size`` when it was trained (few texts give fewer ids); none if it was given."""


class DerivedFrom(Record):
    """The dataset version whose documents a first version took over with another tokenizer: ids of two tokenizers never stand in one dataset."""

    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of its manifest's file; it says the same wherever the dataset lies."""
    version: int = Field(ge=1)
    """Its number: everything that versions 1..N held was taken over."""
    tokenizer_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the tokenizer.json that made its ids."""


class Totals(Record):
    """Sums over versions 1..N."""

    num_records: int = 0
    """Offsets read."""
    num_tokens: int = 0
    """Tokens in shards, train and validation."""
    num_train_tokens: int = 0
    """Tokens in train shards."""
    outcomes: dict[Outcome, int] = Field(default_factory=dict)
    """Offsets by outcome."""
    num_lost: int = 0
    """Offsets that were lost before any version read them and were accepted as lost, as far as their number is known."""
    num_masked_documents: int = 0
    """Kept documents that were retracted since."""
    num_masked_tokens: int = 0
    """Their tokens, train and validation."""
    num_masked_train_tokens: int = 0
    """Those of them that stand in train shards."""

    @property
    def num_effective_train_tokens(self) -> int:
        """Train tokens that training reads: those of retracted documents do not count."""
        return self.num_train_tokens - self.num_masked_train_tokens


class DatasetManifest(Record):
    """One version of the dataset."""

    format: int = Field(FORMAT, ge=1, le=FORMAT)
    """Version of this file format."""
    version: int = Field(ge=1)
    """This version; the file is named after it."""
    parent: int = Field(ge=0)
    """The version before; 0 for the first."""
    created_at: datetime
    """When the commit was made, UTC."""
    attempt: str = Field(pattern=r"^[0-9a-f]{12}$")
    """Unique suffix of the files of this attempt."""
    topic_ids: dict[str, str]
    """Kafka's id of each topic: a re-created topic has another one."""
    offsets: dict[str, dict[int, OffsetRange]]
    """topic -> partition -> offsets that this version took in; partitions without new records have start == end."""
    outcomes: dict[Outcome, int]
    """Offsets by outcome; every outcome is listed."""
    reasons: dict[str, int]
    """Offsets by ``outcome/reason``, for example ``rejected/too_short``."""
    record_bytes: dict[str, dict[int, int]] = Field(default_factory=dict)
    """topic -> partition -> mean bytes of the records last read from it, with headers and what they refer to: to judge the next version's size by."""
    leader_epochs: dict[str, dict[int, int]] = Field(default_factory=dict)
    """topic -> partition -> leader epoch of the record before the end of its range; without it, a log that was cut is not noticed."""
    accepted_loss: AcceptedLoss | None = None
    """Of a version without documents: what a person accepted as lost. Its ranges are empty and begin where reading goes on."""
    num_records: int = Field(ge=0)
    """Offsets read: the sum of the ranges and of the outcomes."""
    num_tokens: int = Field(ge=0)
    """Tokens in this version's shards, end-of-text tokens included."""
    shards: list[ShardEntry]
    """Shards that this version adds."""
    documents: list[FileEntry]
    """Parquet files with one row per offset."""
    dedup_segments: list[FileEntry]
    """Fingerprints of this version's kept documents."""
    dedup_base: list[FileEntry] = Field(default_factory=list)
    """Of a compaction, which is a version of its own without documents: one file that stands for all segments up to ``dedup_base_version``."""
    dedup_base_version: int = Field(0, ge=0)
    """Version whose kept documents, and those before, ``dedup_base`` holds."""
    merged: list[MergedShard] = Field(default_factory=list)
    """Files that replace runs of small shards; a merge is a version without documents (pipelines/dataset/merging.py)."""
    boilerplate: list[FileEntry] = Field(default_factory=list)
    """With ``dedup.boilerplate``, one file: in how many kept documents each line stood, over the versions from ``boilerplate_first_version`` on."""
    boilerplate_first_version: int = Field(0, ge=0)
    """First version that ``boilerplate`` covers; 0: there is no such file."""
    masks: list[FileEntry] = Field(default_factory=list)
    """Spans of documents, of this version and those before, that this version's retractions took out."""
    num_masked_documents: int = Field(0, ge=0)
    """Documents that this version's retractions took out: the rows of ``masks``."""
    num_masked_tokens: int = Field(0, ge=0)
    """Their tokens, end-of-text tokens included."""
    tokenizer: TokenizerRef
    """The one tokenizer of the dataset."""
    sequence_length: int = Field(ge=1)
    """Tokens per packed row."""
    settings_fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    """schemas.settings.data_fingerprint of the settings in force."""
    languages: dict[str, int]
    """Kept documents by language."""
    statistics: VersionStatistics | None = None
    """Distributions of this version's records; pipelines.dataset.statistics.statistics_of counts them again for a version that has none."""
    totals: Totals
    """Sums over this version and all before."""
    derived_from: DerivedFrom | None = None
    """The dataset from which a new lineage was made (pipelines/dataset/switch.py); only in the versions that the switch made."""
    code_version: str | None = None
    """Version of Headrace that wrote it, with the git commit where there is one; none: one that did not say so yet."""
    traceparent: str | None = None
    """W3C trace context of the commit."""

    @property
    def files(self) -> list[FileEntry]:
        """Every file that this version adds."""
        lists = (self.shards, self.documents, self.dedup_segments, self.dedup_base, self.merged, self.boilerplate, self.masks)
        return [entry for entries in lists for entry in entries]

    @model_validator(mode="after")
    def adds_up(self) -> Self:
        """Every offset has exactly one outcome, and every token stands in one shard."""
        by_range = sum(len(span) for partitions in self.offsets.values() for span in partitions.values())
        by_outcome = sum(self.outcomes.values())
        by_document = sum(entry.rows for entry in self.documents)
        if not by_range == by_outcome == by_document == self.num_records:
            raise ValueError(
                f"offsets do not add up: ranges {by_range}, outcomes {by_outcome}, documents rows {by_document}, num_records {self.num_records}"
            )
        if sum(entry.tokens for entry in self.shards) != self.num_tokens:
            raise ValueError(f"tokens do not add up: shards {sum(entry.tokens for entry in self.shards)}, num_tokens {self.num_tokens}")
        if sum(entry.documents for entry in self.shards) != self.outcomes.get(Outcome.KEPT, 0):
            raise ValueError("kept documents do not add up: the shards hold another number than the outcomes say")
        if sum(entry.rows for entry in self.masks) != self.num_masked_documents:
            raise ValueError("retracted documents do not add up: the mask files have another number of rows than num_masked_documents says")
        if len(self.dedup_base) > 1 or bool(self.dedup_base) != (self.dedup_base_version > 0) or self.dedup_base_version > self.version:
            raise ValueError(f"version {self.version} lists {len(self.dedup_base)} base files for versions 1 to {self.dedup_base_version}")
        if len(self.boilerplate) > 1 or bool(self.boilerplate) != (0 < self.boilerplate_first_version <= self.version):
            raise ValueError(f"version {self.version} lists {len(self.boilerplate)} files of lines from version {self.boilerplate_first_version} on")
        if self.merged and (self.num_records or self.shards):
            raise ValueError(f"version {self.version} merges shards and reads {self.num_records} offsets; one version cannot do both")
        if self.accepted_loss is not None:
            self._check_loss(self.accepted_loss)
        if self.parent != self.version - 1:
            raise ValueError(f"version {self.version} cannot follow version {self.parent}")
        return self

    def _check_loss(self, accepted: AcceptedLoss) -> None:
        """A loss is a version of its own, and its ranges begin where it says."""
        if self.num_records:
            raise ValueError(f"version {self.version} accepts a loss and reads {self.num_records} offsets; these are two versions")
        for loss in accepted.lost:
            found = self.offsets.get(loss.topic, {}).get(loss.partition)
            if (found.start if found is not None else None) != loss.resumed:
                raise ValueError(f"{loss.topic}[{loss.partition}] goes on at {loss.resumed} after the loss, but its range says something else")


class ViewRef(Record):
    """A view (schemas/view.py) of a dataset version."""

    name: str
    """Name of the view."""
    version: int = Field(ge=1)
    """Version of the view."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the view version's file: pins its rules and the files that they rest on."""
    num_train_documents: int = Field(ge=0)
    """Documents among its train rows."""
    num_train_tokens: int = Field(ge=0)
    """Their tokens."""
    groups: dict[str, float]
    """Group -> share of the rows that were read."""


class DatasetRef(Record):
    """A dataset version that a model was trained on."""

    version: int = Field(ge=1)
    """Dataset version N: the union of manifests 1..N."""
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of manifest N's file: pins every byte below it."""
    offsets: dict[str, dict[int, OffsetRange]]
    """Offsets [0 or first, end) that the union covers."""
    num_train_tokens: int = Field(ge=0)
    """Train tokens in the union, without those of retracted documents."""
    view: ViewRef | None = None
    """Which part of it, in which shares; none: all of it as it is."""

    @property
    def data_sha256(self) -> str:
        """Pins what training reads: the dataset version, and the view if there is one."""
        if self.view is None:
            return self.manifest_sha256
        return hashlib.sha256(f"{self.manifest_sha256} {self.view.sha256}".encode("ascii")).hexdigest()


class Evaluation(Record):
    """How good a model is on the validation rows of a dataset version."""

    dataset_version: int = Field(ge=1)
    """Whose validation rows."""
    loss: float
    """Mean cross-entropy, nats per token."""
    perplexity: float
    """exp(loss)."""
    num_tokens: int = Field(ge=0)
    """Tokens that were predicted."""
    view: str | None = None
    """``NAME@N/SPLIT`` if these were the rows of a split of a view; none: the validation rows."""


class TrainingSummary(Record):
    """What a training run did."""

    run_id: str
    """Name of the run's folder under ``<root>/training``."""
    steps: int = Field(ge=0)
    """Optimizer steps."""
    tokens: int = Field(ge=0)
    """Tokens seen."""
    first_loss: float
    """Training loss of the first step, nats per token."""
    last_loss: float
    """Training loss of the last step."""
    duration_s: float = Field(ge=0)
    """Wall time of the steps, over all attempts."""
    num_workers: int = Field(ge=1)
    """Data-parallel processes."""
    parent_model: int | None = None
    """Model version whose weights the run started from; none: from scratch."""
    precision: str | None = None
    """fp32, bf16 or fp16: the arithmetic of the run; none in manifests of versions that did not say."""


class ModelManifest(Record):
    """One immutable model version: ``<root>/models/<version>/`` holds the HF files, ``manifest.json`` this."""

    format: int = Field(FORMAT, ge=1, le=FORMAT)
    """Version of this file format."""
    version: int = Field(ge=1)
    """This version."""
    created_at: datetime
    """When it was registered, UTC."""
    files: list[FileEntry]
    """Every file of the version, paths relative to the root; ``rows`` is 0."""
    architecture: str
    """Class name in transformers, for example LlamaForCausalLM."""
    num_parameters: int = Field(ge=1)
    """Trainable numbers."""
    dataset: DatasetRef
    """What it was trained on."""
    tokenizer: TokenizerRef
    """Which tokenizer it speaks."""
    training: TrainingSummary
    """How it was trained."""
    evaluation: Evaluation | None
    """How good it is; none if the dataset has no validation rows."""
    parent_evaluation: Evaluation | None = None
    """How good the model that it grew out of is on the same rows: a trial against that model needs no other measurement."""
    settings_fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Fingerprint of the model and training settings."""
    code_version: str
    """Version of Headrace that made it, with the git commit where there is one."""
    traceparent: str | None = None
    """W3C trace context of the run."""
