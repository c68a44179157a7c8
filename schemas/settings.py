"""Settings: one frozen tree of documented sections; where they come from is schemas/settings_sources.py.

``fingerprint`` hashes exactly the settings that decide what bytes an ingest writes or what weights a training run
produces, so that a changed setting is visible in every manifest.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from schemas.listen import parse_listen
from schemas.section import Section
from schemas.settings_data import IngestSettings, PackingSettings, TokenizerSettings
from schemas.settings_dedup import DedupSettings
from schemas.settings_drift import DriftSettings
from schemas.settings_formats import FormatsSettings
from schemas.settings_pii import PiiSettings
from schemas.settings_quality import C4Settings, FineWebSettings, GopherQualitySettings, GopherRepetitionSettings, QualitySettings
from schemas.settings_quality_model import QualityModelSettings
from schemas.settings_storage import StorageSettings, check_url

_RESOURCE = r"^([A-Za-z_][\w.-]*)?$"


class KafkaSettings(Section):
    """How to reach Kafka. Security settings are passed to kafka-python under the same names."""

    bootstrap_servers: str = ""
    """``host:port[,host:port]``; empty means the embedded broker that ``up`` and ``demo`` start."""
    topic_prefix: str = Field("headrace", pattern=r"^[a-zA-Z0-9._-]{1,200}$")
    """First part of every topic name: ``<prefix>.documents``, ``.deadletter``, ``.events``, ``.inference``."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How to connect; anything but PLAINTEXT needs the matching fields below."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER"] | None = None
    """SASL mechanism, when the protocol is SASL_*."""
    sasl_plain_username: str | None = None
    """User for PLAIN and SCRAM."""
    sasl_plain_password: SecretStr | None = None
    """Password for PLAIN and SCRAM; never printed."""
    ssl_cafile: str | None = None
    """PEM file of the certificate authority that signed the brokers' certificates."""
    ssl_certfile: str | None = None
    """PEM file of the client's certificate, for mutual TLS."""
    ssl_keyfile: str | None = None
    """PEM file of the client's private key, for mutual TLS."""
    ssl_check_hostname: bool = True
    """Whether the broker's certificate must name the host we connect to."""
    num_partitions: int = Field(2, ge=1, le=10_000)
    """Partitions of topics that Headrace creates."""
    replication_factor: int = Field(1, ge=1, le=10)
    """Replication of topics that Headrace creates."""
    request_timeout_s: float = Field(30.0, gt=0)
    """How long one request to a broker may take."""
    max_request_bytes: int = Field(32 * 2**20, ge=1024)
    """Largest record the producers try to send; the topic's own limit applies too."""


class BrokerSettings(Section):
    """The embedded broker: for laptops and tests."""

    listen: str = "127.0.0.1:9092"
    """``host:port``; port 0 takes a free one. There is no authentication: name another host than loopback in a trusted network only."""
    auto_create_topics: bool = True
    """Create an unknown topic when a client asks for it, as Apache Kafka does by default."""
    num_partitions: int = Field(2, ge=1, le=10_000)
    """Partitions of auto-created topics."""
    max_message_bytes: int = Field(1_048_588, ge=1024)
    """Largest record batch a topic takes, unless the topic's own ``max.message.bytes`` says otherwise."""
    segment_bytes: int = Field(64 * 2**20, ge=4096)
    """A partition's log rolls to a new segment file at this size."""
    retention_ms: int = Field(7 * 24 * 3_600_000, ge=-1)
    """Age at which segments are deleted; -1 keeps them. Topics override it with ``retention.ms``. Documents that ingest has not committed to a
    version stay whatever their age: a stream that nobody ingests grows until the disk is full, and then its producers get errors."""
    retention_bytes: int = Field(-1, ge=-1)
    """Size of a partition beyond which its oldest segments are deleted; -1 keeps them. Documents that no version has read stay here too."""
    retention_check_interval_s: float = Field(5.0, gt=0)
    """How often retention is applied."""
    min_session_timeout_ms: int = Field(1_000, ge=1)
    """Shortest session time-out a group member may ask for."""
    max_connections: int = Field(1_000, ge=1)
    """Connections beyond this are closed at once."""
    max_request_bytes: int = Field(100 * 2**20, ge=4096)
    """A request frame larger than this closes its connection."""

    @field_validator("listen")
    @classmethod
    def listen_is_an_address(cls, listen: str) -> str:
        """Refuse what does not name one host and one port."""
        parse_listen(listen)
        return listen


class ModelSettings(Section):
    """The shape of a Llama-style model."""

    preset: Literal["nano", "small", "base"] = "nano"
    """``nano`` trains on two cores in a minute; ``small`` is about 25 M parameters, ``base`` about 125 M."""


class TrainingSettings(Section):
    """One training run."""

    num_workers: int = Field(2, ge=1)
    """Data-parallel processes."""
    use_gpu: bool = False
    """One GPU per worker (NCCL); otherwise CPU (gloo)."""
    threads_per_worker: int = Field(1, ge=1)
    """Torch threads of a CPU worker."""
    max_steps: int = Field(120, ge=1)
    """Optimizer steps of a run."""
    global_batch_rows: int = Field(16, ge=1)
    """Rows of S tokens per optimizer step, over all workers."""
    accumulation_steps: int = Field(1, ge=1)
    """Micro-batches per optimizer step and worker."""
    learning_rate: float = Field(3e-3, gt=0)
    """Peak learning rate of AdamW."""
    min_learning_rate_ratio: float = Field(0.1, ge=0, le=1)
    """Where the cosine ends, as a share of the peak."""
    warmup_steps: int = Field(10, ge=0)
    """Linear warm-up."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW decay of matrices; norms and biases have none."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """``auto``: bf16 on GPUs that have it, fp16 with loss scaling on older ones, fp32 on CPU."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the weights and of the order of rows."""
    checkpoint_every_steps: int = Field(20, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """Checkpoints of a run that are kept."""
    evaluate_rows: int = Field(256, ge=1)
    """Most validation rows for perplexity."""
    max_failures: int = Field(8, ge=0)
    """Worker failures after which a run is given up."""


class ServingSettings(Section):
    """The HTTP service."""

    host: str = "127.0.0.1"
    """Address the API listens on. Anything but loopback needs ``api_keys``."""
    port: int = Field(8000, ge=0, le=65_535)
    """Port the API listens on."""
    api_keys: tuple[SecretStr, ...] = ()
    """Bearer tokens that are accepted; empty accepts every request (loopback only)."""
    max_concurrent_sequences: int = Field(16, ge=1)
    """Sequences one engine decodes together: the number of KV-cache slots."""
    max_queued_requests: int = Field(128, ge=1)
    """Requests that wait for a slot; more are refused with 429."""
    max_sequence_tokens: int = Field(1_024, ge=8)
    """Prompt and completion together; the model's own limit applies too."""
    max_completion_tokens: int = Field(512, ge=1)
    """Most tokens that one request may ask for."""
    request_timeout_s: float = Field(120.0, gt=0)
    """Longest time for one answer."""
    drain_timeout_s: float = Field(30.0, ge=0)
    """How long running answers may go on in a part of the service that is stopped or replaced; what is not finished then ends with an error."""
    threads_per_engine: int = Field(1, ge=1)
    """Torch threads of an engine on CPU."""
    use_gpu: bool = False
    """One GPU per engine replica."""
    min_engine_replicas: int = Field(1, ge=1)
    """Replicas of the engine of each model version that is served …"""
    max_engine_replicas: int = Field(1, ge=1)
    """… and the most replicas that Serve may start. Equal numbers: no autoscaling."""
    target_engine_requests: float = Field(0.0, ge=0)
    """Autoscaling: target number of sequences, running and waiting, for each replica; a request for several answers counts as so many.
    0: ``max_concurrent_sequences``, so that each runs full."""
    min_gateway_replicas: int = Field(1, ge=1)
    """Gateways, the processes between the HTTP proxies and the engines …"""
    max_gateway_replicas: int = Field(1, ge=1)
    """… and the most that Serve may start. Equal numbers: no autoscaling."""
    target_gateway_requests: float = Field(100.0, gt=0)
    """Autoscaling: target number of HTTP requests under way for each gateway."""
    scale_up_delay_s: float = Field(30.0, ge=0)
    """Autoscaling of engines and gateways: seconds with more than that before a replica is added."""
    scale_down_delay_s: float = Field(600.0, ge=0)
    """Autoscaling of engines and gateways: seconds with less than that before a replica is removed."""
    record_prompts: bool = False
    """Whether ``inference.completed`` events carry prompts and answers. Off: ids, counts and times only."""
    seed: int = Field(0, ge=0)
    """Requests without a seed get theirs from a series that begins with this one, the same after each start; each of several gateways has
    a series of its own. 0: each request gets a random seed."""

    @property
    def url(self) -> str:
        """Where the API answers."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether the API listens on a loopback address, which only programs of its own machine reach."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    @model_validator(mode="after")
    def replicas_are_in_order(self) -> "ServingSettings":
        """Refuse a maximum below the minimum, and a target that no replica reaches."""
        most = self.max_concurrent_sequences + self.max_queued_requests
        if self.target_engine_requests > most:
            raise ValueError(f"target_engine_requests is {self.target_engine_requests:g}, and a replica takes {most} requests at most; lower it")
        for part in ("engine", "gateway"):
            low, high = getattr(self, f"min_{part}_replicas"), getattr(self, f"max_{part}_replicas")
            if high < low:
                raise ValueError(f"max_{part}_replicas is {high}, below min_{part}_replicas, which is {low}")
        return self

    @model_validator(mode="after")
    def exposed_needs_keys(self) -> "ServingSettings":
        """Refuse to listen beyond loopback without authentication."""
        if not self.is_local and not self.api_keys:
            raise ValueError(f"serving.host is {self.host!r}, reachable from other machines; set serving.api_keys, or listen on 127.0.0.1")
        return self


class RolloutSettings(Section):
    """The guarded path of a new model: shadow, then a share of traffic, then champion."""

    shadow_fraction: float = Field(1.0, ge=0, le=1)
    """Share of requests that are copied to the challenger during shadow."""
    min_shadow_requests: int = Field(20, ge=1)
    """Shadow answers needed before the challenger gets traffic."""
    canary_fraction: float = Field(0.2, gt=0, le=1)
    """Share of sticky keys that the challenger answers during canary."""
    min_canary_requests: int = Field(20, ge=1)
    """Challenger answers needed before promotion."""
    max_unanswered_requests: int = Field(200, ge=1)
    """The challenger is withdrawn if it answers nothing while the champion gives this many answers (times the challenger's share)."""
    min_users: int = Field(10, ge=1)
    """Distinct users (sticky keys) among the challenger's answers that each phase needs; a request without a user counts as one."""
    max_error_rate: float = Field(0.02, ge=0, le=1)
    """Guard: largest share of requests that the challenger fails, or refuses though the champion answers them."""
    max_cancelled_increase: float = Field(0.1, ge=0, le=1)
    """Guard: the share of the challenger's answers that clients did not wait for may exceed the champion's by this much."""
    max_latency_ratio: float = Field(2.0, gt=0)
    """Guard: largest ratio of the challenger's median latency per token to the champion's."""
    max_loss_increase: float = Field(0.02, ge=0)
    """Guard: the challenger's validation loss (nats per token) may exceed the champion's by this much, on the same validation rows."""


class LoopSettings(Section):
    """When the loop trains, on what, and how often it looks."""

    min_new_tokens: int = Field(100_000, ge=1)
    """New training tokens since the last trained dataset version that start a training run."""
    view: str = Field("", pattern=r"^([a-z][a-z0-9_-]{0,63}(@[1-9][0-9]{0,7})?)?$")
    """Train on this view ``NAME[@N]`` of the newest dataset version; without @N on its newest version. Empty: train on the whole dataset version."""
    poll_interval_s: float = Field(0.5, gt=0)
    """How often the loop looks at what has changed."""
    restart_backoff_s: float = Field(1.0, gt=0)
    """First pause before a part that died is started again; doubles up to 30 s."""


class RaySettings(Section):
    """How to reach or start Ray."""

    address: str = "local"
    """``local`` starts a private Ray for this command; ``auto`` or ``host:port`` joins a running cluster."""
    num_cpus: int = Field(8, ge=1)
    """Logical CPUs of a local Ray. A setting, not cores: Ray only counts with it."""
    object_store_bytes: int = Field(512 * 2**20, ge=80 * 2**20)
    """Shared memory of a local Ray."""
    dashboard_port: int = Field(8265, ge=0, le=65_535)
    """Port of the dashboard of a local Ray, or the next free one if it is taken; 0: no dashboard."""
    dashboard_host: str = "127.0.0.1"
    """Address on which the dashboard listens, of the Ray that ``up`` starts. It requires Ray's token. In a container: ``0.0.0.0``."""
    ingest_nodes: str = Field("", pattern=_RESOURCE)
    """On a cluster with several kinds of nodes: name of a custom resource. Only nodes that have it read and prepare documents. Empty: any node."""
    training_nodes: str = Field("", pattern=_RESOURCE)
    """The same: only nodes that have it run training workers."""
    engine_nodes: str = Field("", pattern=_RESOURCE)
    """The same: only nodes that have it run engines."""
    gateway_nodes: str = Field("", pattern=_RESOURCE)
    """The same: only nodes that have it run gateways. If the API listens on loopback only, gateways run on the head, whatever this says."""

    @model_validator(mode="after")
    def roles_need_a_cluster(self) -> "RaySettings":
        """Refuse the name of a resource that no node of a private Ray has."""
        named = [f"ray.{name}" for name in ("ingest_nodes", "training_nodes", "engine_nodes", "gateway_nodes") if getattr(self, name)]
        if named and self.address == "local":
            raise ValueError(f"{named[0]} names a resource of a cluster's nodes, but ray.address is 'local'; set ray.address=auto, or leave it empty")
        return self


class TelemetrySettings(Section):
    """OpenTelemetry."""

    otlp_endpoint: str = Field("", pattern=r"^(https?://\S+)?$")
    """Collector that gets the traces (OTLP over HTTP), for example ``http://localhost:4318``; empty sends none."""
    openlineage_url: str = Field("", pattern=r"^(https?://\S+)?$")
    """Receiver of OpenLineage run events, for example ``http://localhost:5000/api/v1/lineage``; empty: they are only written under the root."""
    metrics_port: int = Field(0, ge=0, le=65_535)
    """Port on which ``ingest`` serves /metrics for Prometheus, /health and /ready; 0 serves nothing."""
    metrics_host: str = "127.0.0.1"
    """Address on which that port listens. Whoever reaches it can read it without a key. In a pod whose Prometheus runs elsewhere: ``0.0.0.0``."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe log line that is written."""


class Settings(Section):
    """All settings."""

    root: str = "./headrace-data"
    """Folder for all durable data, or a URL: ``s3://BUCKET/PREFIX`` (gs, az), with secrets from the environment or the host's role."""
    kafka: KafkaSettings = KafkaSettings()
    broker: BrokerSettings = BrokerSettings()
    ingest: IngestSettings = IngestSettings()
    formats: FormatsSettings = FormatsSettings()
    quality: QualitySettings = QualitySettings()
    gopher_quality: GopherQualitySettings = GopherQualitySettings()
    gopher_repetition: GopherRepetitionSettings = GopherRepetitionSettings()
    c4: C4Settings = C4Settings()
    fineweb: FineWebSettings = FineWebSettings()
    quality_model: QualityModelSettings = QualityModelSettings()
    pii: PiiSettings = PiiSettings()
    dedup: DedupSettings = DedupSettings()
    drift: DriftSettings = DriftSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    packing: PackingSettings = PackingSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    serving: ServingSettings = ServingSettings()
    rollout: RolloutSettings = RolloutSettings()
    loop: LoopSettings = LoopSettings()
    ray: RaySettings = RaySettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    storage: StorageSettings = StorageSettings()

    @field_validator("root")
    @classmethod
    def root_is_a_folder_or_a_url(cls, root: str) -> str:
        """Refuse what this version cannot write to."""
        if not root:
            raise ValueError("root is empty; it must be a folder (on a cluster: one that every node mounts), or the URL of an object store")
        if "://" in root:
            check_url(root)
        return root


DATA_SECTIONS = (
    "formats",
    "quality",
    "gopher_quality",
    "gopher_repetition",
    "c4",
    "fineweb",
    "quality_model",
    "pii",
    "dedup",
    "tokenizer",
    "packing",
)
"""Sections that decide the bytes of a dataset version, together with ``ingest.validation_fraction`` and ``ingest.max_document_bytes``."""
SPEED_ONLY = {
    "tokenizer": {"engine", "check_fraction", "min_training_bytes", "max_wait_s"},
    "dedup": {"compact_segments", "index_shards"},
    "formats": {"dataref_roots", "max_inline_bytes"},
}
"""Fields of those sections that decide how fast the same bytes are made, or where texts lie before: no part of any fingerprint."""
MODEL_SECTIONS = ("model", "training")
"""Sections that decide the weights of a model version."""


def fingerprint(settings: Settings, sections: Iterable[str], extra: Mapping[str, Any] | None = None) -> str:
    """SHA-256 (hex) over the canonical JSON of the named sections plus ``extra``; equal settings give equal bytes on every machine."""
    value = {name: getattr(settings, name).model_dump(mode="json", exclude=SPEED_ONLY.get(name)) for name in sorted(sections)}
    return digest(value | dict(extra or {}))


def digest(value: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the canonical JSON of a value; equal values give equal bytes on every machine."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def data_fingerprint(settings: Settings) -> str:
    """Fingerprint of every setting that decides the bytes of a dataset version."""
    ingest = settings.ingest
    extra = {"validation_fraction": ingest.validation_fraction, "max_document_bytes": ingest.max_document_bytes}
    return fingerprint(settings, DATA_SECTIONS, extra)
