"""The error tree. Everything Headrace raises on purpose is a ``HeadraceError``.

    HeadraceError
    ├── SettingsError            a setting, flag or environment variable is wrong       (exit code 2)
    ├── EnvelopeError            a Kafka record is not a valid event -> dead letter
    ├── BrokerError              the Kafka cluster cannot be used
    │   ├── BrokerUnavailable    nothing answers, or it refuses our credentials
    │   └── RecordTooLarge       the topic does not take a record of this size
    ├── SourceError              the stream changed in a way that exactly-once reading does not allow; ingest stops
    │   ├── TopicMissing         the topic does not exist
    │   ├── TopicRecreated       the topic was deleted and created again since the dataset was read from it
    │   ├── OffsetsLost          retention removed offsets that were never read
    │   ├── SourceStalled        a partition stopped making progress before the planned end
    │   └── BlobsUnavailable     a folder of documents outside their records cannot be read at the moment
    ├── DatasetError
    │   ├── DatasetNotFound      no dataset, or no such version, under this root
    │   ├── NotEnoughText        too little waits to train the dataset's tokenizer on; it goes on waiting
    │   ├── ViewNotFound         no view of this name, or no such version of it
    │   ├── CommitConflict       another writer published this version first: this one is fenced
    │   ├── ManifestCorrupt      a manifest does not parse or contradicts itself
    │   ├── ManifestNewer        a later Headrace wrote the manifest, with fields that this one does not know
    │   ├── ShardCorrupt         a file's bytes differ from what its manifest says
    │   ├── TokenizerMismatch    token ids of two tokenizers would be mixed                        (exit code 2)
    │   ├── QualityModelCorrupt  a quality model's bytes differ from the hash in its name
    │   └── StoreUnavailable     the object store that holds the root does not answer, after several tries
    ├── HookFailed               the operator's own code, named in the settings, raised or returned a wrong answer
    ├── BlockChanged             a block that was prepared again on another node has other tokens than at first
    ├── BlockTooLarge            the data that a block's records refer to does not fit into memory; the job handles it
    ├── StepFailed               a step of the pipeline fails on so many records that the step is at fault
    ├── LeaseLost                another process took over what this one held on the object store; what it does is not committed
    ├── TrainingError
    │   ├── TrainingDiverged     loss or weights of a run stopped being numbers           (exit code 3)
    │   ├── CheckpointCorrupt    a checkpoint is incomplete or belongs to another run
    │   └── NotEnoughData        the dataset has fewer rows than one global batch
    ├── RegistryError
    │   └── ModelNotFound        no such model version or alias
    ├── RolloutError             a transition that the rollout policy does not allow
    ├── ServiceFailed            a part of `up` does not start or refuses its settings, or another `up` runs under this root
    └── ApiError                 an HTTP error with an OpenAI error body (schemas/openai.py)

A message says what happened, with which values, and what to do about it.
"""

WRONG_USAGE = 2
"""Exit code of a command whose settings or flags are wrong: the same command again cannot help."""
DIVERGED = 3
"""Exit code of a training run whose loss or weights stopped being numbers: the same run would do the same again."""
LASTING_FAILURES = frozenset({WRONG_USAGE, DIVERGED})
"""Exit codes of commands that would fail in the same way if they were run again."""


class HeadraceError(Exception):
    """Base of all errors that Headrace raises on purpose; the command line prints it in one line and exits."""

    exit_code: int = 1


class SettingsError(HeadraceError):
    """A setting, flag or environment variable is unknown or has a value it cannot have."""

    exit_code = WRONG_USAGE


class EnvelopeError(HeadraceError):
    """A Kafka record is not a valid event. ``rule`` is the stable, countable name of what is wrong with it."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


class BrokerError(HeadraceError):
    """The Kafka cluster cannot do what was asked of it."""


class BrokerUnavailable(BrokerError):
    """No broker answers at the given address, or it refuses our credentials."""


class RecordTooLarge(BrokerError):
    """The topic does not take a record of this size (``max.message.bytes``)."""


class SourceError(HeadraceError):
    """The stream changed in a way that exactly-once reading does not allow; ingest stops and commits nothing."""


class TopicMissing(SourceError):
    """The topic to read does not exist on this cluster."""


class TopicRecreated(SourceError):
    """The topic was deleted and created again: its offsets do not mean what the dataset's manifest says."""


class OffsetsLost(SourceError):
    """Retention or DeleteRecords removed offsets that no committed version has read."""


class SourceStalled(SourceError):
    """A partition made no progress towards its planned end offset within the time limit."""


class BlobsUnavailable(SourceError):
    """A folder that documents refer to cannot be read at the moment. Nothing is committed, so nothing is lost: try again when it is back."""


class DatasetError(HeadraceError):
    """Something is wrong with the dataset under the root."""


class DatasetNotFound(DatasetError):
    """There is no dataset, or no such version, under this root."""


class NotEnoughText(DatasetError):
    """The documents that wait hold too little text to train the dataset's tokenizer on. Nothing is committed, and nothing lost."""


class ViewNotFound(DatasetError):
    """There is no view of this name under this root, or no such version of it."""


class CommitConflict(DatasetError):
    """Another writer published this version number first. Nothing of this attempt is visible to readers."""


class ManifestCorrupt(DatasetError):
    """A manifest does not parse, or what it says contradicts itself."""


class ManifestNewer(DatasetError):
    """A later Headrace wrote a manifest, with fields that this one does not know."""


class ShardCorrupt(DatasetError):
    """A file's bytes differ from what its manifest says."""


class TokenizerMismatch(DatasetError):
    """Token ids of two different tokenizers would end up in one dataset: the settings, or a file, must be set back."""

    exit_code = WRONG_USAGE


class QualityModelCorrupt(DatasetError):
    """A quality model's files differ from the hash in its folder's name."""


class StoreUnavailable(DatasetError):
    """The object store that holds the root does not answer, after several tries. What was being published may be there or not: the log shows it."""


class HookFailed(HeadraceError):
    """The operator's own code, named in the settings, raised or returned a wrong answer. The batch is not committed: nothing is lost."""


class BlockChanged(HeadraceError):
    """A block that was prepared again, because its node was lost, has other tokens than at first. Nothing was committed."""


class BlockTooLarge(HeadraceError):
    """The data that a block's records refer to does not fit into memory. The job splits the block and catches this."""


class StepFailed(HeadraceError):
    """A step of the pipeline fails on so many records that the step is at fault. Nothing is committed or dead-lettered."""


class LeaseLost(HeadraceError):
    """Another process took over what this one held on the object store. Nothing that this one does is committed any more."""


class TrainingError(HeadraceError):
    """A training run could not start or could not go on."""


class TrainingDiverged(TrainingError):
    """The loss or the weights of a run stopped being numbers. The same run would do the same again, so the exit code tells it apart."""

    exit_code = DIVERGED


class CheckpointCorrupt(TrainingError):
    """A checkpoint is incomplete, damaged, or belongs to another run."""


class NotEnoughData(TrainingError):
    """The dataset holds fewer rows than training needs for one global batch."""


class RegistryError(HeadraceError):
    """The model registry cannot do what it was asked to do."""


class ModelNotFound(RegistryError):
    """There is no such model version, or the alias points to none."""


class RolloutError(HeadraceError):
    """The rollout policy does not allow this transition in the present state."""


class ServiceFailed(HeadraceError):
    """A part of ``headrace up`` does not start or refuses its settings (exit code 2), or another ``up`` runs under the same root (exit code 1)."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ApiError(HeadraceError):
    """An HTTP error. ``status`` is the HTTP status; ``type``, ``code`` and ``param`` fill the OpenAI error body."""

    def __init__(
        self, status: int, message: str, *, type: str, code: str | None = None, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
