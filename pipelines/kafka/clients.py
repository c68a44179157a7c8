"""Opening kafka-python's clients: one place for their options, and for turning their errors into sentences.

Invariant: no client that is opened here creates a topic by looking at it, commits offsets by itself, or resets an offset that is out
of range. Opening costs one bootstrap, a few milliseconds; the first fetch about 50 ms.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import AuthorizationError, KafkaConfigurationError, KafkaError
from kafka.net.compat import KafkaNetClient

from schemas.errors import BrokerUnavailable, HeadraceError, SettingsError
from schemas.settings import KafkaSettings, Settings

CLIENT_ID = "headrace"
LISTENER_PAUSE_S = 0.1
RETRY_BACKOFF_MS = 10
"""A consumer waits so long twice before its first fetch, even with nothing wrong; kafka-python's 100 ms would be a third of a slice's time."""
FETCH_BYTES = 4 * 2**20
"""Most bytes of one fetch, except that a single larger batch still comes whole; a consumer holds about three fetches."""
_PASSED_THROUGH = ("security_protocol", "sasl_mechanism", "sasl_plain_username", "ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")


def client_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Options that consumers, producers and admin clients share. Raises SettingsError if there is no broker to connect to."""
    servers = [server.strip() for server in kafka.bootstrap_servers.split(",") if server.strip()]
    if not servers:
        raise SettingsError("kafka.bootstrap_servers is empty; give --bootstrap-servers HOST:PORT, or let `headrace up` start the embedded broker")
    timeout_ms = int(kafka.request_timeout_s * 1000)
    password = kafka.sasl_plain_password
    return {
        "bootstrap_servers": servers,
        "client_id": CLIENT_ID,
        "request_timeout_ms": timeout_ms,
        "connections_max_idle_ms": max(540_000, 2 * timeout_ms),
        "bootstrap_timeout_ms": timeout_ms,
        "sasl_plain_password": password.get_secret_value() if password is not None else None,
        **{name: getattr(kafka, name) for name in _PASSED_THROUGH},
    }


def open_consumer(settings: Settings, **overrides: Any) -> KafkaConsumer:
    """A consumer of committed records for manual assignment: no group, no auto-commit, an error when an offset is out of range."""
    options = client_options(settings.kafka) | {
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "isolation_level": "read_committed",
        "fetch_max_wait_ms": min(500, int(settings.kafka.request_timeout_s * 500)),
        "fetch_max_bytes": FETCH_BYTES,
        "max_partition_fetch_bytes": FETCH_BYTES,
        "max_poll_records": 1_000,
        "metrics_enabled": False,
        "retry_backoff_ms": RETRY_BACKOFF_MS,
    }
    with _connecting(settings.kafka) as network:
        return _Consumer(**(options | network | overrides))


class _Consumer(KafkaConsumer):
    """Frees what it fetched when it is closed.

    kafka-python leaves the last fetches, some megabytes, in a cycle of references. In a process with many modules the garbage collector runs so
    rarely that a worker of Ray held 100 MB of them after 80 slices (measured).
    """

    def close(self, *args: Any, **kwargs: Any) -> None:
        """As the base class, and free the fetches."""
        super().close(*args, **kwargs)
        fetcher = self._fetcher
        fetcher.close()
        fetcher._next_partition_records = None
        fetcher._completed_fetches.clear()
        fetcher._fetch_futures.clear()


def open_producer(settings: Settings, **overrides: Any) -> KafkaProducer:
    """An idempotent producer that waits for all replicas and tries records up to ``kafka.max_request_bytes``."""
    options = client_options(settings.kafka) | {
        "acks": "all",
        "enable_idempotence": True,
        "max_request_size": settings.kafka.max_request_bytes,
        "max_block_ms": int(settings.kafka.request_timeout_s * 1000),
        "linger_ms": 5,
    }
    with _connecting(settings.kafka) as network:
        return KafkaProducer(**(options | network | overrides))


def open_admin(settings: Settings) -> KafkaAdminClient:
    """An admin client."""
    with _connecting(settings.kafka) as network:
        return KafkaAdminClient(**(client_options(settings.kafka) | network))


@contextmanager
def _connecting(kafka: KafkaSettings) -> Iterator[dict[str, Any]]:
    """Options for a client that is opened inside the block. Makes up for three things that kafka-python 3.0.12 leaves open.

    A client that cannot connect keeps a thread, its sockets and four more descriptors: a reader that tries again until the broker is
    back would run out of them, so a client is opened only when somebody listens, and closed when it still fails.
    And ``allow_auto_create_topics`` never reaches the part that asks for metadata: reading a topic that somebody has just deleted would
    bring it back empty, with the broker's default configuration. Neither does ``retry_backoff_ms``.
    """
    opened: list[KafkaNetClient] = []

    def network_client(**options: Any) -> KafkaNetClient:
        client = KafkaNetClient(**options)
        opened.append(client)
        client.cluster.config |= {"allow_auto_create_topics": False, "retry_backoff_ms": RETRY_BACKOFF_MS}
        return client

    _await_listener(kafka)
    try:
        with broker_errors(kafka, "connect"):
            yield {"kafka_client": network_client}
    except HeadraceError:
        for client in opened:
            client.close()
        raise


def _await_listener(kafka: KafkaSettings) -> None:
    """Return once one of the bootstrap servers takes a TCP connection; BrokerUnavailable after ``kafka.request_timeout_s``."""
    deadline = time.monotonic() + kafka.request_timeout_s
    while True:
        for server in kafka.bootstrap_servers.split(","):
            host, _, port = server.strip().rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=max(0.1, deadline - time.monotonic())).close()
            except (OSError, ValueError) as error:
                failure = error
            else:
                return
        if time.monotonic() > deadline:
            raise BrokerUnavailable(_unavailable(kafka, "connect", failure)) from failure
        time.sleep(LISTENER_PAUSE_S)


@contextmanager
def broker_errors(kafka: KafkaSettings, doing: str) -> Iterator[None]:
    """Turn what kafka-python raises inside the block into BrokerUnavailable with a sentence."""
    try:
        yield
    except AuthorizationError as error:
        user = kafka.sasl_plain_username or "this client"
        raise BrokerUnavailable(f"{kafka.bootstrap_servers} does not allow {user} to {doing}: {error}; ask for the topic's or group's ACL") from error
    except KafkaConfigurationError as error:
        raise SettingsError(f"the [kafka] settings do not go together: {error}") from error
    except (KafkaError, OSError) as error:
        raise BrokerUnavailable(_unavailable(kafka, doing, error)) from error


def _unavailable(kafka: KafkaSettings, doing: str, error: Exception) -> str:
    """kafka-python says "Unable to bootstrap" for everything that can be wrong with a connection, a wrong password included."""
    what = f"cannot {doing} at {kafka.bootstrap_servers} ({kafka.security_protocol}) within {kafka.request_timeout_s:g} s: {error}"
    causes = ["the broker is not running or not reachable", "kafka.bootstrap_servers names the wrong host or port"]
    if kafka.security_protocol.startswith("SASL"):
        causes.append(f"the user ({kafka.sasl_plain_username}), the password or kafka.sasl_mechanism ({kafka.sasl_mechanism}) is wrong")
    else:
        causes.append("the broker wants SASL (kafka.security_protocol)")
    if kafka.security_protocol.endswith("SSL"):
        causes.append("the broker's certificate is not signed by kafka.ssl_cafile")
    return f"{what}; it may be that {', or '.join(causes)}"
