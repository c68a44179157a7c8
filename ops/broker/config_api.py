"""Handlers of DescribeConfigs and IncrementalAlterConfigs."""

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any

from kafka.protocol.admin import DescribeConfigsResponse, IncrementalAlterConfigsResponse

from ops.broker.codes import ErrorCode, ProtocolError
from ops.broker.configs import TOPIC_CONFIGS, ConfigKey, ConfigSource, ConfigType, check_config
from ops.broker.dispatch import Body, RequestContext
from ops.broker.metadata import NODE_ID
from ops.broker.topics import Catalogue, Topic
from schemas.settings import BrokerSettings

_Result = DescribeConfigsResponse.DescribeConfigsResult
_Config = _Result.DescribeConfigsResourceResult


class ResourceType(IntEnum):
    """What a configuration belongs to."""

    TOPIC = 2
    BROKER = 4


class Operation(IntEnum):
    """What IncrementalAlterConfigs may do to a value."""

    SET = 0
    DELETE = 1
    APPEND = 2
    SUBTRACT = 3


class ConfigApi:
    """Handlers for configurations."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def describe(self, _context: RequestContext, request: Any) -> Body:
        """Configurations of topics and of this broker, with where each value comes from."""
        return DescribeConfigsResponse(throttle_time_ms=0, results=[self._describe(wanted) for wanted in request.resources])

    def _describe(self, wanted: Any) -> Any:
        code, message, configs = ErrorCode.NONE, None, []
        try:
            configs = self._configs_of(wanted)
        except ProtocolError as error:
            code, message = error.code, str(error)
        keys = set(wanted.configuration_keys or ())
        return _Result(
            error_code=int(code),
            error_message=message,
            resource_type=wanted.resource_type,
            resource_name=wanted.resource_name,
            configs=[config for config in configs if not keys or config.name in keys],
        )

    def _configs_of(self, wanted: Any) -> list[Any]:
        settings = self._catalogue.settings
        if wanted.resource_type == ResourceType.TOPIC:
            self._catalogue.check_name(wanted.resource_name)
            return describe_topic_configs(_Config, self._catalogue.resolve(wanted.resource_name, None).configs, settings)
        if wanted.resource_type == ResourceType.BROKER and wanted.resource_name in ("", str(NODE_ID)):
            return describe_broker_configs(settings) if wanted.resource_name else []
        raise ProtocolError(ErrorCode.INVALID_REQUEST, f"there are no configurations for resource {wanted.resource_type} {wanted.resource_name!r}")

    def alter(self, _context: RequestContext, request: Any) -> Body:
        """Set, reset, extend or reduce topic configurations; all of a topic's or none."""
        responses = [self._alter(wanted, validate_only=request.validate_only) for wanted in request.resources]
        return IncrementalAlterConfigsResponse(throttle_time_ms=0, responses=responses)

    def _alter(self, wanted: Any, *, validate_only: bool) -> Any:
        code, message = ErrorCode.NONE, None
        try:
            if wanted.resource_type != ResourceType.TOPIC:
                raise ProtocolError(ErrorCode.INVALID_REQUEST, "only topic configurations can be changed while the embedded broker runs")
            topic = self._catalogue.resolve(wanted.resource_name, None)
            configs = altered(topic, wanted.configs, self._catalogue.settings)
            if not validate_only:
                self._catalogue.set_configs(topic, configs)
        except ProtocolError as error:
            code, message = error.code, str(error)
        return IncrementalAlterConfigsResponse.AlterConfigsResourceResponse(
            error_code=int(code), error_message=message, resource_type=wanted.resource_type, resource_name=wanted.resource_name
        )


def altered(topic: Topic, changes: Iterable[Any], settings: BrokerSettings) -> dict[str, str]:
    """The topic's configurations after these changes. Raises INVALID_CONFIG or INVALID_REQUEST."""
    configs = dict(topic.configs)
    for change in changes:
        if change.config_operation == Operation.DELETE:
            check_config(change.name, TOPIC_CONFIGS[change.name].default(settings) if change.name in TOPIC_CONFIGS else None)
            configs.pop(change.name, None)
        else:
            configs[change.name] = check_config(change.name, _new_value(configs, change, settings))
    return configs


def _new_value(configs: Mapping[str, str], change: Any, settings: BrokerSettings) -> str | None:
    if change.config_operation == Operation.SET:
        return str(change.value) if change.value is not None else None
    key = TOPIC_CONFIGS.get(change.name)
    if key is None or key.type is not ConfigType.LIST:
        raise ProtocolError(ErrorCode.INVALID_CONFIG, f"{change.name} is not a list: it can be set, but not extended or reduced")
    present = configs.get(change.name, key.default(settings)).split(",")
    parts = change.value.split(",")
    kept = [part for part in present if part not in parts]
    return ",".join(kept + parts if change.config_operation == Operation.APPEND else kept)


def describe_topic_configs(config_class: Any, configs: Mapping[str, str], settings: BrokerSettings) -> list[Any]:
    """Every topic configuration with its value and source, in the response class asked for."""
    return [_describe_one(config_class, name, key, configs.get(name), settings) for name, key in TOPIC_CONFIGS.items()]


def _describe_one(config_class: Any, name: str, key: ConfigKey, value: str | None, settings: BrokerSettings) -> Any:
    is_set = value is not None
    default_source = ConfigSource.STATIC_BROKER if key.broker_name else ConfigSource.DEFAULT
    values: dict[str, Any] = {
        "name": name,
        "value": value if is_set else key.default(settings),
        "read_only": False,
        "config_source": int(ConfigSource.TOPIC if is_set else default_source),
        "is_sensitive": False,
    }
    if config_class is _Config:
        values |= {"synonyms": [], "config_type": int(key.type), "documentation": None}
    return config_class(**values)


def describe_broker_configs(settings: BrokerSettings) -> list[Any]:
    """The broker's own settings under the names that Apache Kafka gives them; they are read-only here."""
    named = {key.broker_name: (key.default(settings), key.type) for key in TOPIC_CONFIGS.values() if key.broker_name}
    named |= {
        "auto.create.topics.enable": (str(settings.auto_create_topics).lower(), ConfigType.BOOLEAN),
        "group.min.session.timeout.ms": (str(settings.min_session_timeout_ms), ConfigType.INT),
        "max.connections": (str(settings.max_connections), ConfigType.INT),
        "node.id": (str(NODE_ID), ConfigType.INT),
        "num.partitions": (str(settings.num_partitions), ConfigType.INT),
        "socket.request.max.bytes": (str(settings.max_request_bytes), ConfigType.INT),
    }
    return [
        _Config(
            name=name,
            value=value,
            read_only=True,
            config_source=int(ConfigSource.STATIC_BROKER),
            is_sensitive=False,
            synonyms=[],
            config_type=int(kind),
            documentation=None,
        )
        for name, (value, kind) in sorted(named.items())
    ]
