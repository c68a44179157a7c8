"""Addresses to listen on: ``HOST:PORT``, one way to read them.

A host is always named, because leaving it out would mean every interface of the machine. An IPv6 address stands in brackets.
"""

import re
from typing import NamedTuple

_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[0-9a-fA-F:.]+(?:%\w+)?)\]|(?P<name>[^\s:\[\]]+)):(?P<port>\d{1,5})")
MAX_PORT = 65_535


class Listen(NamedTuple):
    """An address to listen on; port 0 takes a free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def parse_listen(text: str) -> Listen:
    """Read ``HOST:PORT``. Raises ValueError, which says what is wrong with it."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not HOST:PORT; write 127.0.0.1:9092 for this machine only, 0.0.0.0:9092 for all its interfaces")
    if int(found["port"]) > MAX_PORT:
        raise ValueError(f"{text!r} has port {found['port']}; the largest is {MAX_PORT}")
    return Listen(found["ipv6"] or found["name"], int(found["port"]))
