"""A soak: `headrace ingest --follow` over a changing stream while its processes are killed at random, and the accounts at the end.

    make soak MINUTES=30      or      python -m benchmarks.soak [--minutes 30] [--seed N] [--runner local] [--rate 1] [--keep DIR] [--json]

An embedded broker, an ingester and a producer (traffic.py) run as processes of their own; chaos.py says when one of them is killed, suspended
or given a rival. Whatever ends by itself is a finding. At the end everything runs again, the producer stops, the ingester takes in what is
left and stops, ``headrace datasets verify`` reads every byte, and accounts.py holds the dataset against Kafka's own log. Exit code 0: nothing
was found. The same seed gives the same strikes at the same times; what they hit is up to the machine.
"""

import argparse
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.soak.run import Soak
from benchmarks.soak.summary import catching_up, memory_told, settled, show
from ops.cli.output import print_json, say


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--runner", choices=("local", "ray"), default="local")
    parser.add_argument("--rate", type=float, default=1.0, help="times the usual 240 records per second (less on a slow machine)")
    parser.add_argument("--keep", type=Path, help="a new folder for data, logs and ledgers, which stays; else they are removed")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=folder != args.keep)
        say(f"seed {args.seed}; everything is in {folder}")
        soak = Soak(folder, args.seed, args.runner, args.rate)
        stack.callback(soak.kill_all)
        soak.start()
        soak.run(60 * args.minutes)
        soak.drain()
        summary = {name: getattr(args, name) for name in ("minutes", "seed", "runner", "rate")}
        summary |= {"strikes": dict(sorted(soak.strikes.items())), **settled(soak)}
        summary |= {"caught_up_s": catching_up(soak), "memory": memory_told(soak.memory, 60 * args.minutes), "findings": soak.findings}
    (print_json if args.json else show)(summary)
    return 1 if soak.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
