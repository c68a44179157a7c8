"""Waiting for something to be there, with a limit."""

import time
from collections.abc import Callable
from typing import TypeVar

import httpx

ResultT = TypeVar("ResultT")


def until(look: Callable[[], ResultT | None], what: str, timeout_s: float, pause_s: float = 0.5) -> ResultT:
    """What ``look`` finds as soon as it finds something; an address that does not answer is nothing."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            found = look()
        except httpx.TransportError:
            found = None
        if found is not None:
            return found
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(pause_s)
