"""``headrace serve``: the HTTP service, until Ctrl-C, SIGTERM or SIGHUP."""

import argparse
import signal
import sys
import threading
from pathlib import Path

from ops.cli.output import print_json, say
from schemas.settings import Settings


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Register the command."""
    parser = subparsers.add_parser("serve", parents=[common], help="serve the champion (and a challenger) with the OpenAI API")
    parser.add_argument("--json", action="store_true", help="print one JSON document when the service answers")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Serve until told to stop; prints the URL on standard output once it answers."""
    from pipelines.runtime.stopping import handle_stops
    from pipelines.storage.durable import check_root
    from ray_apps.serving.app import serve_forever
    from ray_apps.serving.reconciler import bootstrap_newest

    if not Path(settings.root).exists():  # one that is there may be read-only
        check_root(Path(settings.root))
    state = bootstrap_newest(settings)
    if state is not None:
        say(f"no rollout yet: model {state.champion}, the newest, is champion now (rollout entry {state.number})")
    stopping = threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait for running requests

    def ready(url: str) -> None:
        handle_stops(stop, signal.SIGINT, signal.SIGTERM)
        if args.json:
            print_json({"url": url, "openai_base_url": f"{url}/v1", "health": f"{url}/health"})
        else:
            print(f"serving at {url} (OpenAI API: {url}/v1, state: {url}/health); Ctrl-C stops")
        sys.stdout.flush()  # whoever started us may read from a pipe

    serve_forever(settings, stopping, ready)
    return 0
