"""What the storage of a root costs: publishing entries of a log, writing files, opening and listing, in a folder and on a store.

    python -m benchmarks.storage [--root s3://BUCKET/PREFIX] [--entries 200] [--folder /tmp]

Without ``--root`` the store is moto's server on loopback, which answers in some 5 ms: what is measured then is the number of requests, not a cloud.
For each act the processor time of this process and the wall time, both the median of all calls. Processor time is what to compare between two
revisions on a busy machine.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.machine import machine, versions
from pipelines.storage.commit_log import CommitLog
from pipelines.storage.durable import check_root, create_durably, file_entry, replace_durably
from pipelines.storage.pinned import check_present, read_pinned

FILE_BYTES = 100_000


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description="storage of a root")
    parser.add_argument("--root", help="a root on an object store (default: moto on loopback)")
    parser.add_argument("--entries", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    print(machine(), versions("obstore"))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure("folder", Path(folder, "root"), args.entries)
        if args.root is None:
            measure_moto(Path(folder), args.entries // 4)
        elif args.root:
            from pipelines.storage.mirror import root_folder

            measure(args.root, root_folder(args.root, folder), args.entries // 4)


def measure_moto(folder: Path, entries: int) -> None:
    """With the server of the tests."""
    from pipelines.storage.mirror import root_folder
    from tests.object_stores import running_store

    with ExitStack() as stack:
        store = stack.enter_context(running_store("moto", folder))
        os.environ.update(store.environment)
        measure("moto", root_folder(store.url("benchmark"), str(folder / "cache")), entries)
        print(f"  requests: {dict(store.proxy.requests)}")


def measure(name: str, root: Path, entries: int) -> None:
    """Every act, so many times."""
    check_root(root)
    log, numbers = CommitLog(root / "log"), range(1, entries + 1)
    print(f"{name}: median processor time and wall time of a call, ms")
    timed("publish an entry", numbers, lambda number: log.publish(number, b"x" * 2_000))
    timed("newest entry, known", numbers, lambda _: log.latest(entries - 2))
    timed("read an entry", numbers, log.read)
    timed("write 100 KB", numbers, lambda number: replace_durably(root / "shards" / str(number), bytes(FILE_BYTES)))
    timed("create 100 KB", numbers, lambda number: create_durably(root / "views" / str(number), bytes(FILE_BYTES)))
    listed = [file_entry(root, root / "shards" / str(number), 1) for number in numbers]
    timed("read 100 KB, pinned", numbers, lambda number: read_pinned(root, listed[number - 1]))
    timed("10 files are there", numbers, lambda number: check_present(root, listed[number % 10 :][:10]))


def timed(what: str, numbers: range, act: Callable[[int], object]) -> None:
    """Call it for each number."""
    cpu, wall = [], []
    for number in numbers:
        start = (time.process_time(), time.perf_counter())
        act(number)
        cpu.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    print(f"  {what:22} {1e3 * statistics.median(cpu):8.3f} {1e3 * statistics.median(wall):8.3f}")


if __name__ == "__main__":
    main()
