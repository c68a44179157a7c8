"""The topics by name, their creation, and their identity.

Kafka raises nothing when a topic is deleted and created again under a reader; only its id changes. So whoever relies on offsets asks
for the ids before and after.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple
from uuid import UUID

from kafka import KafkaAdminClient
from kafka.errors import NoError, TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

from pipelines.kafka.clients import broker_errors, open_admin
from schemas.errors import BrokerError, TopicMissing
from schemas.settings import Settings


class Topics(NamedTuple):
    """Topic names by what they carry."""

    documents: str
    deadletter: str
    events: str
    inference: str


def topic_names(settings: Settings) -> Topics:
    """The four topics under ``kafka.topic_prefix``."""
    return Topics(*(f"{settings.kafka.topic_prefix}.{name}" for name in Topics._fields))


def ensure_topics(settings: Settings) -> None:
    """Create those of the four topics that do not exist; leave the others as they are.

    The dead-letter topic takes records as large as ``kafka.max_request_bytes``, since it must take what any documents topic took.
    """
    topics = topic_names(settings)
    with broker_errors(settings.kafka, "create topics"), open_admin(settings) as admin:
        present = {topic["name"] for topic in admin.describe_topics() if topic["error_code"] == NoError.errno}
        for name in topics:
            if name not in present:
                configs = {"max.message.bytes": str(settings.kafka.max_request_bytes)} if name == topics.deadletter else {}
                _create(admin, name, settings, configs)


def _create(admin: Any, name: str, settings: Settings, configs: dict[str, str]) -> None:
    kafka = settings.kafka
    options = {"num_partitions": kafka.num_partitions, "replication_factor": kafka.replication_factor, "configs": configs}
    try:
        admin.create_topics({name: options}, wait_for_metadata=True)
    except TopicAlreadyExistsError:
        return  # somebody else was faster, which is as good


def topic_ids(settings: Settings, names: Iterable[str]) -> dict[str, str]:
    """Kafka's id of each topic, a UUID. Raises TopicMissing if one does not exist, BrokerError if the broker is too old to have ids."""
    with broker_errors(settings.kafka, "describe topics"), open_admin(settings) as admin:
        return {topic["name"]: _identity(topic) for topic in described(admin, settings, sorted(set(names)))}


def described(admin: KafkaAdminClient, settings: Settings, names: list[str]) -> list[dict[str, Any]]:
    """Metadata of the topics, as kafka-python gives it. Raises TopicMissing, BrokerError."""
    found: list[dict[str, Any]] = admin.describe_topics(names)
    for topic in found:
        error = for_code(topic["error_code"])
        if error is UnknownTopicOrPartitionError:
            raise missing(topic["name"], settings)
        if error is not NoError:
            raise BrokerError(f"topic {topic['name']!r} cannot be described: {error.__name__}: {error.description}; check its name and its leader")
    return found


def _identity(topic: dict[str, Any]) -> str:
    identity = topic["topic_id"]
    if identity is None or UUID(str(identity)).int == 0:
        raise BrokerError(f"the broker gives topic {topic['name']!r} no id; Headrace needs Apache Kafka 2.8 or later, or a broker that has topic ids")
    return str(identity)


def missing(topic: str, settings: Settings) -> TopicMissing:
    """The error for a topic that is not there."""
    where = settings.kafka.bootstrap_servers
    return TopicMissing(f"there is no topic {topic!r} at {where}; create it, or check kafka.topic_prefix ({settings.kafka.topic_prefix})")
