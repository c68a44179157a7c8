"""Loopback ports that are chosen now and listened on later.

The system gives each connection, and each server that asks for any port, one of its ephemeral range. So a port of that range may be taken
between the choice and the use; Ray alone takes dozens when it starts. The ports that are chosen here lie below the range, at random, and above
those that `ray start` keeps for its workers (10002 to 19999): it refuses to start where one of its other ports is among them.
"""

import random
import socket
from pathlib import Path

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST = 20_000
ATTEMPTS = 1_000


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port."""
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now, all different. Raises OSError if none are found."""
    end = _first_ephemeral()
    found: set[int] = set()
    for _ in range(ATTEMPTS):
        if len(found) == count:
            return list(found)
        port = random.randrange(LOWEST, end)  # noqa: S311  (no secret)
        if is_free(port):
            found.add(port)
    raise OSError(f"no {count} free ports from {LOWEST} to {end - 1} on 127.0.0.1")


def _first_ephemeral() -> int:
    """Where the ephemeral range begins; if it leaves no room below it, the end of all ports."""
    try:
        first = int(EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32_768
    return first if first > LOWEST + ATTEMPTS else 65_536
