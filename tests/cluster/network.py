"""This thread in the network of a host: it reaches what a program on that host reaches. So do the threads that it starts."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.hosts import Host

CLONE_NEWNET = 0x40000000


@contextmanager
def joined(host: Host) -> Iterator[None]:
    """Be in the host's network inside the block. Only Python 3.12 has ``os.setns``."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _enter(Path(f"/proc/{host.pid}/ns/net"))
        yield
    finally:
        _enter_descriptor(own)
        os.close(own)


def _enter(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _enter_descriptor(descriptor)
    finally:
        os.close(descriptor)


def _enter_descriptor(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
