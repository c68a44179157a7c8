"""Topic configurations: the names of Apache Kafka, their types and defaults, and which of them this broker acts on.

Names whose effect one broker cannot show (flushing, replication, index sizes) are accepted and reported as they were set. Values that
would promise something this broker does not do (``LogAppendTime``, recompression) are refused. A ``compact`` topic keeps
everything: compaction may happen at any time, here it never does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from ops.broker.codes import ErrorCode, ProtocolError
from schemas.settings import BrokerSettings


class ConfigType(IntEnum):
    """Types as DescribeConfigs names them."""

    BOOLEAN = 1
    STRING = 2
    INT = 3
    LONG = 5
    DOUBLE = 6
    LIST = 7


class ConfigSource(IntEnum):
    """Where a value comes from, as DescribeConfigs names it."""

    TOPIC = 1
    STATIC_BROKER = 4
    DEFAULT = 5


@dataclass(frozen=True, kw_only=True)
class ConfigKey:
    """One topic configuration."""

    type: ConfigType
    default: Callable[[BrokerSettings], str]
    broker_name: str = ""
    """Name of the broker's own setting that the default is taken from; empty if it is fixed."""
    allowed: tuple[str, ...] = ()
    """All values there are, for choices."""
    minimum: float = float("-inf")


def _fixed(value: str) -> Callable[[BrokerSettings], str]:
    return lambda _settings: value


def _long(default: str, minimum: float = 0) -> ConfigKey:
    return ConfigKey(type=ConfigType.LONG, default=_fixed(default), minimum=minimum)


def _int(default: str, minimum: float = 0) -> ConfigKey:
    return ConfigKey(type=ConfigType.INT, default=_fixed(default), minimum=minimum)


def _choice(default: str, *allowed: str) -> ConfigKey:
    kind = ConfigType.BOOLEAN if default in ("true", "false") else ConfigType.STRING
    return ConfigKey(type=kind, default=_fixed(default), allowed=allowed)


TOPIC_CONFIGS: Mapping[str, ConfigKey] = {
    "cleanup.policy": ConfigKey(type=ConfigType.LIST, default=_fixed("delete"), allowed=("delete", "compact")),
    "compression.gzip.level": _int("-1", -1),
    "compression.lz4.level": _int("9", 1),
    "compression.type": _choice("producer", "producer"),
    "compression.zstd.level": _int("3", -131072),
    "delete.retention.ms": _long("86400000"),
    "file.delete.delay.ms": _long("60000"),
    "flush.messages": _long("9223372036854775807", 1),
    "flush.ms": _long("9223372036854775807"),
    "index.interval.bytes": _int("4096"),
    "max.compaction.lag.ms": _long("9223372036854775807", 1),
    "max.message.bytes": ConfigKey(
        type=ConfigType.INT, default=lambda settings: str(settings.max_message_bytes), broker_name="message.max.bytes", minimum=0
    ),
    "message.timestamp.after.max.ms": _long("3600000"),
    "message.timestamp.before.max.ms": _long("9223372036854775807"),
    "message.timestamp.type": _choice("CreateTime", "CreateTime"),
    "min.cleanable.dirty.ratio": ConfigKey(type=ConfigType.DOUBLE, default=_fixed("0.5"), minimum=0),
    "min.compaction.lag.ms": _long("0"),
    "min.insync.replicas": _int("1", 1),
    "preallocate": _choice("false", "false", "true"),
    "retention.bytes": ConfigKey(
        type=ConfigType.LONG, default=lambda settings: str(settings.retention_bytes), broker_name="log.retention.bytes", minimum=-1
    ),
    "retention.ms": ConfigKey(type=ConfigType.LONG, default=lambda settings: str(settings.retention_ms), broker_name="log.retention.ms", minimum=-1),
    "segment.bytes": ConfigKey(
        type=ConfigType.INT, default=lambda settings: str(settings.segment_bytes), broker_name="log.segment.bytes", minimum=14
    ),
    "segment.index.bytes": _int("10485760", 4),
    "segment.jitter.ms": _long("0"),
    "segment.ms": _long("604800000", 1),
    "unclean.leader.election.enable": _choice("false", "false", "true"),
}


def check_config(name: str, value: str | None) -> str:
    """The value, if this topic configuration exists and may have it; otherwise raises INVALID_CONFIG saying why."""
    key = TOPIC_CONFIGS.get(name)
    if key is None:
        raise ProtocolError(ErrorCode.INVALID_CONFIG, f"Unknown topic config name: {name}")
    if value is None:
        raise ProtocolError(ErrorCode.INVALID_CONFIG, f"Null value not supported for topic configs: {name}")
    parts = value.split(",") if key.type is ConfigType.LIST else [value]
    if key.allowed and not set(parts) <= set(key.allowed):
        raise ProtocolError(ErrorCode.INVALID_CONFIG, f"{name} is {value!r}; the embedded broker takes {', '.join(key.allowed)}")
    if not key.allowed:
        _check_number(name, value, key)
    return value


def _check_number(name: str, value: str, key: ConfigKey) -> None:
    try:
        number = float(value) if key.type is ConfigType.DOUBLE else int(value)
    except ValueError as error:
        raise ProtocolError(ErrorCode.INVALID_CONFIG, f"{name} is {value!r}, which is not a number") from error
    if number < key.minimum:
        raise ProtocolError(ErrorCode.INVALID_CONFIG, f"{name} is {value}; it must be at least {key.minimum:g}")


@dataclass(frozen=True)
class TopicLimits:
    """The configurations that the broker acts on, as numbers."""

    max_message_bytes: int
    segment_bytes: int
    future_limit_ms: int
    """How far ahead of our clock a record's timestamp may be."""
    retention_ms: int | None
    retention_bytes: int | None

    @classmethod
    def of(cls, configs: Mapping[str, str], settings: BrokerSettings) -> "TopicLimits":
        """Limits of a topic with these configurations."""

        def number(name: str) -> int:
            return int(configs.get(name) or TOPIC_CONFIGS[name].default(settings))

        deletes = "delete" in configs.get("cleanup.policy", "delete")
        return cls(
            max_message_bytes=number("max.message.bytes"),
            segment_bytes=number("segment.bytes"),
            future_limit_ms=number("message.timestamp.after.max.ms"),
            retention_ms=number("retention.ms") if deletes and number("retention.ms") >= 0 else None,
            retention_bytes=number("retention.bytes") if deletes and number("retention.bytes") >= 0 else None,
        )
