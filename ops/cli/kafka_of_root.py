"""Which Kafka a command uses: one rule for all of them.

(1) The one that is named (``--bootstrap-servers``, ``kafka.bootstrap_servers``). (2) Else the one that a running ``up`` or ``broker``
of this root uses. (3) Else, for a command that needs one, the embedded broker of this root, started for as long as the command runs; for one
that only publishes what it did, none.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ops.broker.running import running_broker
from ops.cli.output import say
from ops.supervisor.root_lock import kafka_of_running_up
from schemas.errors import BrokerUnavailable
from schemas.settings import Settings

if TYPE_CHECKING:
    from pipelines.runtime.child import Child

Need = Literal["must", "may", "no"]
"""Whether a command must have a Kafka, may use one, or has nothing to do with any."""
NEEDS: Mapping[str, Need] = {
    **dict.fromkeys(("produce", "ingest", "deadletter", "retract"), "must"),
    **dict.fromkeys(("datasets", "train", "models", "serve", "rollout"), "may"),
}
"""By command; one that is missing needs none, or, as ``up`` and ``broker``, brings it."""
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


@contextmanager
def with_kafka(settings: Settings, need: Need) -> Iterator[Settings]:
    """Settings with the address filled in; empty where a command that may use a Kafka finds none. Raises BrokerUnavailable."""
    if need == "no" or settings.kafka.bootstrap_servers:
        yield settings
        return
    running = kafka_of(Path(settings.root))
    if running or need == "may":
        yield _using(settings, running or "")
        return
    from pipelines.kafka.topics import ensure_topics

    with _broker_of_our_own(settings) as address:
        settings = _using(settings, address)
        ensure_topics(settings)
        yield settings


def kafka_of(root: Path) -> str | None:
    """The Kafka that runs for this root, if any."""
    return kafka_of_running_up(root) or running_broker(root / "broker")


def _using(settings: Settings, address: str) -> Settings:
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"bootstrap_servers": address})})


@contextmanager
def _broker_of_our_own(settings: Settings) -> Iterator[str]:
    """The embedded broker as a child on a free port of the loopback interface. Raises SettingsError if the root cannot hold its data."""
    from pipelines.runtime.child import Child
    from pipelines.storage.durable import check_root
    from pipelines.storage.store import needs_folder
    from ray_apps.loop.commands import child_environment, headrace

    needs_folder(Path(settings.root), "the embedded broker, which is used where no Kafka is named (--bootstrap-servers),")
    check_root(Path(settings.root))
    say(f"no Kafka is named and none runs for {settings.root}: this command starts the embedded broker and stops it at its end")
    log = Path(settings.root) / "logs" / "broker.log"
    child = Child(headrace(settings, "broker", "--listen", "127.0.0.1:0"), log, environment=child_environment(settings))
    try:
        yield _listening(child, Path(settings.root))
    finally:
        child.stop(STOP_TIMEOUT_S)
        child.close()


def _listening(child: "Child", root: Path) -> str:
    """Wait until the broker says its address. Raises BrokerUnavailable."""
    from pipelines.runtime.child import tail

    deadline = time.monotonic() + START_TIMEOUT_S
    while not (address := kafka_of(root)):
        if child.poll() is not None or time.monotonic() > deadline:
            raise BrokerUnavailable(
                f"the embedded broker did not start: {tail(child.log, 1) or f'it said nothing in {START_TIMEOUT_S:g} s'}; see {child.log}"
            )
        time.sleep(0.02)
    return address
