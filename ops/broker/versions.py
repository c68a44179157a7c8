"""Which requests this broker answers, and in which versions: the one table that ApiVersions and the dispatcher read.

The oldest versions are those of Apache Kafka 4; the newest, the last that kafka-python's classes know and the handlers honour.
Source: https://kafka.apache.org/protocol#protocol_api_keys
"""

from enum import IntEnum
from typing import Any, NamedTuple

from kafka.protocol import admin, consumer, metadata, producer
from kafka.protocol.api_header import ResponseClassRegistry

from ops.broker import varints  # noqa: F401 - bounds the varints of every decoder


class ApiKey(IntEnum):
    """Numbers of the requests that are answered."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    DESCRIBE_GROUPS = 15
    LIST_GROUPS = 16
    API_VERSIONS = 18
    CREATE_TOPICS = 19
    DELETE_TOPICS = 20
    DELETE_RECORDS = 21
    INIT_PRODUCER_ID = 22
    OFFSET_FOR_LEADER_EPOCH = 23
    DESCRIBE_CONFIGS = 32
    CREATE_PARTITIONS = 37
    DELETE_GROUPS = 42
    INCREMENTAL_ALTER_CONFIGS = 44
    OFFSET_DELETE = 47
    DESCRIBE_CLUSTER = 60


class Supported(NamedTuple):
    """The versions of one request that are answered."""

    oldest: int
    newest: int


SUPPORTED: dict[int, Supported] = {
    ApiKey.PRODUCE: Supported(3, 13),
    ApiKey.FETCH: Supported(4, 17),
    ApiKey.LIST_OFFSETS: Supported(1, 10),
    ApiKey.METADATA: Supported(0, 13),
    ApiKey.OFFSET_COMMIT: Supported(2, 9),
    ApiKey.OFFSET_FETCH: Supported(1, 9),
    ApiKey.FIND_COORDINATOR: Supported(0, 6),
    ApiKey.JOIN_GROUP: Supported(0, 9),
    ApiKey.HEARTBEAT: Supported(0, 4),
    ApiKey.LEAVE_GROUP: Supported(0, 5),
    ApiKey.SYNC_GROUP: Supported(0, 5),
    ApiKey.DESCRIBE_GROUPS: Supported(0, 6),
    ApiKey.LIST_GROUPS: Supported(0, 5),
    ApiKey.API_VERSIONS: Supported(0, 4),
    ApiKey.CREATE_TOPICS: Supported(2, 7),
    ApiKey.DELETE_TOPICS: Supported(1, 6),
    ApiKey.DELETE_RECORDS: Supported(0, 2),
    ApiKey.INIT_PRODUCER_ID: Supported(0, 5),
    ApiKey.OFFSET_FOR_LEADER_EPOCH: Supported(2, 4),
    ApiKey.DESCRIBE_CONFIGS: Supported(1, 4),
    ApiKey.CREATE_PARTITIONS: Supported(0, 3),
    ApiKey.DELETE_GROUPS: Supported(0, 2),
    ApiKey.INCREMENTAL_ALTER_CONFIGS: Supported(0, 1),
    ApiKey.OFFSET_DELETE: Supported(0, 0),
    ApiKey.DESCRIBE_CLUSTER: Supported(0, 2),
}


def _request_classes() -> dict[int, Any]:
    modules = (admin, consumer, metadata, producer)
    names = [(module, name) for module in modules for name in module.__all__ if name.endswith("Request")]
    classes = [getattr(module, name) for module, name in names]
    return {request.API_KEY: request for request in classes}


REQUEST_CLASSES: dict[int, Any] = _request_classes()
"""Every request that kafka-python can decode, by key; more than are supported."""


def response_class(api_key: int) -> Any:
    """The class that encodes the answer to this request."""
    return ResponseClassRegistry._response_class_registry[api_key]


def is_decodable(api_key: int, version: int) -> bool:
    """Whether kafka-python knows this version of this request."""
    request = REQUEST_CLASSES.get(api_key)
    return request is not None and 0 <= version <= request.max_version
