"""``headrace broker``: run the embedded Kafka broker by itself, until SIGTERM, SIGHUP or Ctrl-C."""

import argparse
import asyncio
import json
import os
from pathlib import Path

from ops.cli.output import say
from schemas.settings import Settings


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("broker", parents=[common], help="run the embedded Kafka broker (for laptops and tests)")
    parser.add_argument("--listen", metavar="HOST:PORT", type=_listen, help="address to listen on; port 0 takes a free one (default: broker.listen)")
    parser.add_argument("--json", action="store_true", help="print one JSON line when ready")
    parser.set_defaults(run=run)


def _listen(text: str) -> str:
    from schemas.listen import parse_listen

    try:
        parse_listen(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Serve; prints the address on standard output once clients can connect."""
    from ops.broker.app import run_broker

    def ready(bootstrap_servers: str, _stop: asyncio.Event) -> None:
        line = json.dumps({"pid": os.getpid(), "bootstrap_servers": bootstrap_servers})
        print(line if args.json else f"Kafka broker ready at {bootstrap_servers} (process {os.getpid()})", flush=True)

    data_dir = Path(settings.root) / "broker"
    say(f"headrace broker: data in {data_dir}; for laptops and tests: no authentication, one node")
    run_broker(settings.broker, args.listen or settings.broker.listen, data_dir, ready)
    return 0
