"""Events: what Headrace says on Kafka, and what it reads there. CloudEvents 1.0; types and topics as in DESIGN §3.

Every event is an ``Event``, whose ``data`` is one of the models below; ``EVENT_TYPES`` is the only table of type names. The models are
frozen and closed: an unknown key is an error, so that a misspelt one cannot vanish. Only documents are open, because any producer may
send them: keys that we do not know are ignored there.

A new version must read the golden events in tests/unit/golden/: new fields need defaults.
Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SerializeAsAny, StringConstraints, model_validator

from schemas.arrow import Outcome
from schemas.manifest import OffsetRange
from schemas.rollout import Decision, Phase

DOCUMENT_RECEIVED = "document.received"
DOCUMENT_RETRACTED = "document.retracted"
FORMATS = ("text", "html", "auto")
"""What a document's text can be; ``auto`` means HTML if it begins like a page."""
MAX_ID_CHARS = 1024
"""Longest document id; ids are repeated in manifests, indexes and command lines."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def is_document_id(text: str) -> bool:
    """Whether this can name a document: 1 to MAX_ID_CHARS characters, none of them a control character."""
    return 0 < len(text) <= MAX_ID_CHARS and not _CONTROL.search(text)


def is_traceparent(text: str) -> bool:
    """Whether this is a W3C trace context (https://www.w3.org/TR/trace-context/)."""
    return _TRACEPARENT.fullmatch(text) is not None


DocumentId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS, pattern=r"^[^\x00-\x1f\x7f]+$")]


class EventData(BaseModel):
    """Payload of an event: frozen and closed; a line under each field says what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class DocumentReceived(EventData):
    """A raw document for the next dataset version."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: DocumentId | None = None
    """The document's own id; without one the record's key, the event's source and id, or topic/partition/offset name it, in this order."""
    text: str = ""
    """The document; must hold something else than white space, unless ``dataref`` says where the text lies."""
    format: Literal["text", "html", "auto"] = "text"
    """What the text is. Of HTML the main content is taken; ``auto`` means HTML if it begins like a page."""
    dataref: str | None = None
    """Where the text lies if it is not here: a ``file:`` URI below ``formats.dataref_roots``, or a path relative to the root."""
    datarefsha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of what lies there; may be left out where the URI ends in it."""
    datarefsize: int | None = Field(None, ge=0)
    """Its size in bytes."""
    url: str | None = None
    """Where it came from."""
    title: str | None = None
    """Its title."""
    lang: str | None = None
    """Its language as the producer knows it; Headrace looks for itself."""
    domain: str | None = None
    """Its subject or site, for reports and mixing."""
    license: str | None = None
    """Under which licence it may be used, an SPDX name where there is one."""
    created_at: str | None = None
    """When it was written, RFC 3339; kept as it came."""
    source: str | None = None
    """Which collection it belongs to, for statistics and mixing; without one, the source of its event."""
    meta: dict[str, Any] | None = None
    """Anything else that the producer wants to say."""


class DocumentRetracted(EventData):
    """A document must not be in later dataset versions. The same as a null value under the document's key."""

    id: DocumentId
    """The document's id."""
    reason: str | None = None
    """Why, for people."""


class DatasetCommitted(EventData):
    """A dataset version became visible."""

    version: int = Field(ge=1)
    """The version."""
    parent: int = Field(ge=0)
    """The version before; 0 for the first."""
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the manifest's file."""
    offsets: dict[str, dict[int, OffsetRange]]
    """topic -> partition -> offsets that this version took in."""
    outcomes: dict[Outcome, int]
    """Offsets by outcome."""
    num_records: int = Field(ge=0)
    """Offsets read."""
    num_tokens: int = Field(ge=0)
    """Tokens that this version adds."""
    total_train_tokens: int = Field(ge=0)
    """Train tokens of this version and all before it, without those of retracted documents."""


class TrainingStarted(EventData):
    """A training run began."""

    run_id: str
    """Name of the run's folder."""
    dataset_version: int = Field(ge=1)
    """What it trains on."""
    parent_model: int | None = None
    """Model version whose weights it starts from; none: from scratch."""
    num_workers: int = Field(ge=1)
    """Data-parallel processes."""
    steps: int = Field(ge=1)
    """Optimizer steps that are planned."""


class TrainingFinished(EventData):
    """A training run reached its last step."""

    run_id: str
    """Name of the run's folder."""
    dataset_version: int = Field(ge=1)
    """What it trained on."""
    steps: int = Field(ge=0)
    """Optimizer steps done."""
    tokens: int = Field(ge=0)
    """Tokens seen."""
    first_loss: float | None = None
    """Training loss of the first step, nats per token; null if it was not finite, for which JSON has no number."""
    last_loss: float | None = None
    """Training loss of the last step; null if it was not finite."""
    duration_s: float = Field(ge=0)
    """Wall time of the steps."""


class TrainingFailed(EventData):
    """A training run was given up."""

    run_id: str
    """Name of the run's folder."""
    dataset_version: int = Field(ge=1)
    """What it trained on."""
    error: str
    """What happened, in one sentence."""


class ModelRegistered(EventData):
    """A model version exists from now on."""

    version: int = Field(ge=1)
    """The version."""
    dataset_version: int = Field(ge=1)
    """What it was trained on."""
    run_id: str
    """The training run that made it."""
    num_parameters: int = Field(ge=1)
    """Its size."""
    loss: float | None = None
    """Validation loss, nats per token."""
    perplexity: float | None = None
    """exp(loss)."""


class RolloutChanged(EventData):
    """Other model versions answer, or in other shares; the fields are those of schemas/rollout.py."""

    number: int = Field(ge=1)
    """Number of the rollout state."""
    phase: Phase
    """Where the challenger is."""
    champion: int | None = None
    """Model version that answers by default."""
    challenger: int | None = None
    """Model version on trial."""
    canary_fraction: float = Field(ge=0, le=1)
    """Share of sticky keys that the challenger answers."""
    shadow_fraction: float = Field(ge=0, le=1)
    """Share of requests copied to the challenger."""
    decision: Decision
    """What led here."""
    reason: str
    """One sentence with the values that decided."""
    evidence: dict[str, Any] = Field(default_factory=dict)
    """The numbers that the decision rests on."""
    automatic: bool = True
    """Whether the policy decided, or a person."""
    held: bool = False
    """Whether a person's word holds until it is released."""


class AlertFired(EventData):
    """Somebody should look."""

    name: str
    """The alert, a stable word."""
    severity: Literal["info", "warning", "critical"]
    """How soon."""
    summary: str
    """What is wrong, with the values, and what to do."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Which part, topic, model, … it is about."""


class InferenceCompleted(EventData):
    """One engine's answer to a request came to its end, whatever that was. A request that a second engine had to answer has two."""

    request_id: str
    """The request; the primary answer and its shadow copy share it."""
    model_version: int = Field(ge=1)
    """Who answered."""
    role: Literal["champion", "challenger"]
    """As what it answered."""
    shadow: bool
    """Whether this answer was thrown away."""
    pinned: bool = False
    """Whether the client named the version, instead of leaving it to the rollout: such an answer is no evidence in a trial."""
    rollout_number: int = Field(ge=1)
    """Number of the rollout state that was in force."""
    status: Literal["ok", "error", "refused", "cancelled"]
    """``ok``: to its end. ``error``: the engine failed or ran out of time. ``refused``: the engine did not take the request.
    ``cancelled``: the client went away, or the gateway stopped."""
    error_code: str | None = None
    """Code of the error body, for errors and refusals."""
    attempt: int = Field(1, ge=1)
    """Which engine in turn was asked for this request; 1 for the first and for a shadow copy."""
    user_hash: str | None = Field(None, pattern=r"^[0-9a-f]{16}$")
    """Hash of the request's sticky key under the trial's salt: tells users apart within a trial, and names nobody."""
    prompt_tokens: int = Field(ge=0)
    """Tokens of the prompt."""
    completion_tokens: int = Field(ge=0)
    """Tokens of the answer."""
    latency_s: float = Field(ge=0)
    """From the request's arrival to its last token, as the client saw it: earlier attempts and the client's own reading are in it."""
    engine_s: float | None = Field(None, ge=0)
    """How long this engine worked on it: what a trial compares. Earlier attempts and the client's reading are not in it."""
    time_to_first_token_s: float | None = Field(None, ge=0)
    """From the request's arrival to its first token."""
    finish_reason: str | None = None
    """``stop`` or ``length``."""
    prompt: str | None = None
    """The prompt, only with ``serving.record_prompts``."""
    completion: str | None = None
    """The answer, only with ``serving.record_prompts``."""


class FeedbackReceived(EventData):
    """A person or a program judged an answer."""

    request_id: str
    """The request that was answered."""
    score: float = Field(ge=-1, le=1)
    """-1 bad … 1 good."""
    model_version: int | None = None
    """Who answered, when the judge knows."""
    comment: str | None = None
    """In words."""


EVENT_TYPES: Mapping[str, type[EventData]] = {
    DOCUMENT_RECEIVED: DocumentReceived,
    DOCUMENT_RETRACTED: DocumentRetracted,
    "dataset.committed": DatasetCommitted,
    "training.started": TrainingStarted,
    "training.finished": TrainingFinished,
    "training.failed": TrainingFailed,
    "model.registered": ModelRegistered,
    "rollout.changed": RolloutChanged,
    "alert.fired": AlertFired,
    "inference.completed": InferenceCompleted,
    "feedback.received": FeedbackReceived,
}
"""CloudEvents type -> model of its data."""
_TYPE_OF = {model: name for name, model in EVENT_TYPES.items()}


class Event(BaseModel):
    """A CloudEvent. ``source`` and ``id`` together name it: a second event with both the same is a second delivery of the first."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: str = Field(min_length=1)
    """Unique within the source; deterministic where the event can be published twice."""
    source: str = Field(min_length=1)
    """Who says so, a URI reference such as ``/headrace/ingest``."""
    type: str
    """A key of EVENT_TYPES."""
    time: AwareDatetime
    """When it happened, UTC."""
    subject: str | None = Field(None, min_length=1)
    """What it is about: a document id, ``dataset/12``, ``model/3``."""
    traceparent: str | None = None
    """W3C trace context."""
    data: SerializeAsAny[EventData]
    """What happened."""

    @model_validator(mode="after")
    def type_names_data(self) -> Self:
        """Refuse data of another type than ``type`` says."""
        expected = EVENT_TYPES.get(self.type)
        if expected is None or type(self.data) is not expected:
            raise ValueError(f"an event of type {self.type!r} cannot carry {type(self.data).__name__}")
        return self


def new_event(data: EventData, *, id: str, source: str, time: datetime, subject: str | None = None, traceparent: str | None = None) -> Event:
    """An event around ``data``; its type follows from the data's class. ``time`` must be aware and becomes UTC."""
    return Event(id=id, source=source, type=_TYPE_OF[type(data)], time=time.astimezone(UTC), subject=subject, traceparent=traceparent, data=data)
