"""Child-process entry of the embedded broker, for ``ops.broker.process.start_broker``: orders on stdin, one line on stdout."""

import asyncio
import json
import logging
import sys
import threading
from pathlib import Path

from ops.broker.app import run_broker
from ops.broker.process import die_with_parent
from schemas.errors import HeadraceError
from schemas.settings import BrokerSettings


def _watch_parent(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Stop when the parent's end of our standard input closes."""
    while sys.stdin.buffer.read(4096):
        pass
    loop.call_soon_threadsafe(stop.set)


def _ready(bootstrap_servers: str, stop: asyncio.Event) -> None:
    threading.Thread(target=_watch_parent, args=(asyncio.get_running_loop(), stop), daemon=True).start()
    _say({"bootstrap_servers": bootstrap_servers})


def _say(answer: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Read the orders, serve until told to stop."""
    orders = json.loads(sys.stdin.buffer.readline())
    die_with_parent(orders["die_with_thread_of"])
    logging.basicConfig(level=orders["log_level"], format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        run_broker(BrokerSettings.model_validate(orders["settings"]), orders["listen"], Path(orders["data_dir"]), _ready)
    except HeadraceError as error:
        _say({"error": str(error)})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
