"""The embedded broker, put together: catalogue, logs, groups, handlers, listener; and how it starts and stops.

Order of a start: (1) lock the folder; (2) recover topics, producer ids and offsets; (3) listen. Of a stop: (1) stop listening and drop the
connections; (2) flush and close the logs; (3) release the lock. A SIGKILL at any moment costs nothing that was acknowledged.
"""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ops.broker.admin import AdminApi
from ops.broker.config_api import ConfigApi
from ops.broker.dispatch import Dispatcher, Handler
from ops.broker.fetch import FetchApi
from ops.broker.group_api import GroupApi, Groups
from ops.broker.list_offsets import OffsetsApi
from ops.broker.metadata import MetadataApi
from ops.broker.offset_api import OffsetApi
from ops.broker.offsets import OffsetStore
from ops.broker.produce import ProduceApi
from ops.broker.producers import ProducerIds
from ops.broker.retention import keep_applying_retention
from ops.broker.running import LOCK_FILE
from ops.broker.server import Connections
from ops.broker.topics import Catalogue
from ops.broker.versions import ApiKey
from pipelines.runtime import locks
from pipelines.runtime.stopping import hears_hangups
from pipelines.storage.durable import make_folder
from schemas.errors import BrokerError, SettingsError
from schemas.listen import Listen, parse_listen
from schemas.settings import BrokerSettings

logger = logging.getLogger(__name__)


class Broker:
    """Everything durable, and the handlers on top of it. Opening it recovers it."""

    def __init__(self, settings: BrokerSettings, data_dir: Path) -> None:
        make_folder(data_dir)
        self._lock = _lock(data_dir / LOCK_FILE)
        self.catalogue = Catalogue(data_dir, settings)
        self.offsets = OffsetStore(data_dir / "offsets.jsonl")
        self.catalogue.on_forget.append(self.offsets.delete_topic)
        self.groups = Groups(settings, self.offsets)
        self.dispatcher = Dispatcher(self._handlers(ProducerIds(data_dir / "producer-ids.json")))

    def _handlers(self, producer_ids: ProducerIds) -> Mapping[int, Handler]:
        metadata, produce, fetch = MetadataApi(self.catalogue), ProduceApi(self.catalogue, producer_ids), FetchApi(self.catalogue)
        list_offsets, group, offset = OffsetsApi(self.catalogue), GroupApi(self.groups), OffsetApi(self.groups, self.catalogue)
        admin, config = AdminApi(self.catalogue), ConfigApi(self.catalogue)
        return {
            ApiKey.PRODUCE: produce.produce,
            ApiKey.INIT_PRODUCER_ID: produce.init_producer_id,
            ApiKey.FETCH: fetch.fetch,
            ApiKey.LIST_OFFSETS: list_offsets.list_offsets,
            ApiKey.OFFSET_FOR_LEADER_EPOCH: list_offsets.offset_for_leader_epoch,
            ApiKey.METADATA: metadata.metadata,
            ApiKey.FIND_COORDINATOR: metadata.find_coordinator,
            ApiKey.DESCRIBE_CLUSTER: metadata.describe_cluster,
            ApiKey.JOIN_GROUP: group.join,
            ApiKey.SYNC_GROUP: group.sync,
            ApiKey.HEARTBEAT: group.heartbeat,
            ApiKey.LEAVE_GROUP: group.leave,
            ApiKey.DESCRIBE_GROUPS: group.describe,
            ApiKey.LIST_GROUPS: group.list,
            ApiKey.DELETE_GROUPS: group.delete,
            ApiKey.OFFSET_COMMIT: offset.commit,
            ApiKey.OFFSET_FETCH: offset.fetch,
            ApiKey.OFFSET_DELETE: offset.delete,
            ApiKey.CREATE_TOPICS: admin.create_topics,
            ApiKey.DELETE_TOPICS: admin.delete_topics,
            ApiKey.CREATE_PARTITIONS: admin.create_partitions,
            ApiKey.DELETE_RECORDS: admin.delete_records,
            ApiKey.DESCRIBE_CONFIGS: config.describe,
            ApiKey.INCREMENTAL_ALTER_CONFIGS: config.alter,
        }

    def tell_address(self, bootstrap_servers: str) -> None:
        """Say to other processes where this broker listens (``running_broker``)."""
        locks.write_note(self._lock, bootstrap_servers)

    def close(self) -> None:
        """Flush everything and release the folder."""
        self.catalogue.close()
        self.offsets.close()
        os.close(self._lock)


def _lock(path: Path) -> int:
    """Lock the folder for this process. Raises BrokerError if another broker has it."""
    handle = locks.take(path)
    if handle is None:
        raise BrokerError(f"another broker is using {path.parent}; stop it, or give this one another --root")
    return handle


def open_broker(settings: BrokerSettings, data_dir: Path) -> Broker:
    """Lock the folder and recover what is in it. Raises BrokerError if it cannot be used."""
    try:
        return Broker(settings, data_dir)
    except OSError as error:
        raise BrokerError(f"cannot keep the broker's data in {data_dir}: {error}; free some space, or choose another --root") from error


@asynccontextmanager
async def serve(settings: BrokerSettings, listen: str, data_dir: Path) -> AsyncIterator[str]:
    """Run a broker in this event loop; yields its bootstrap address.

    Raises SettingsError if ``listen`` is not HOST:PORT, BrokerError if the folder or the port cannot be used.
    """
    address = _address(listen)
    broker = open_broker(settings, data_dir)
    connections = Connections(settings, broker.dispatcher.dispatch)
    retention = None
    try:
        server = await _listen(connections, address)
        retention = asyncio.create_task(keep_applying_retention(broker.catalogue, broker.offsets))
        try:
            bootstrap_servers = _bootstrap(address, server.sockets[0].getsockname())
            broker.tell_address(bootstrap_servers)
            yield bootstrap_servers
        finally:
            server.close()
            connections.close_all()
    finally:
        if retention is not None:
            retention.cancel()
        broker.close()


def _address(listen: str) -> Listen:
    try:
        return parse_listen(listen)
    except ValueError as error:
        raise SettingsError(f"broker.listen: {error}") from error


async def _listen(connections: Connections, address: Listen) -> asyncio.Server:
    # A free port is taken for each address of a name: "localhost" has two, and one port cannot stand for both.
    family = socket.AF_INET if address == ("localhost", 0) else socket.AF_UNSPEC
    try:
        return await asyncio.get_running_loop().create_server(connections.accept, *address, family=family, backlog=512)
    except OSError as error:
        named = f"{address.host}:{address.port}"
        raise BrokerError(f"cannot listen on {named}: {error.strerror or error}; choose another --listen HOST:PORT") from error


def _bootstrap(address: Listen, bound: tuple[Any, ...]) -> str:
    """The address that clients on this machine can use."""
    host = str(bound[0]) if address.port == 0 else address.host
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"[{host}]:{bound[1]}" if ":" in host else f"{host}:{bound[1]}"


async def _run(settings: BrokerSettings, listen: str, data_dir: Path, on_ready: Callable[[str, asyncio.Event], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hears_hangups() else [])):
        loop.add_signal_handler(number, stop.set)
    async with serve(settings, listen, data_dir) as bootstrap_servers:
        logger.info("listening on %s, data in %s", bootstrap_servers, data_dir)
        if not parse_listen(listen).is_loopback:
            logger.warning("%s can be reached from other machines, and this broker has no authentication", listen)
        on_ready(bootstrap_servers, stop)
        await stop.wait()


def run_broker(settings: BrokerSettings, listen: str, data_dir: Path, on_ready: Callable[[str, asyncio.Event], None]) -> None:
    """Run a broker in this process until SIGTERM, SIGINT, SIGHUP or the event handed to ``on_ready`` (with the address) is set."""
    _raise_file_limit()
    loop_factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_run(settings, listen, data_dir, on_ready))


def _raise_file_limit() -> None:
    """Every segment and every connection is an open file: use what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
