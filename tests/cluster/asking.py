"""A client of the API that asks all the time, and knows how long nobody answered."""

import itertools
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

import httpx

from tests.cluster.cluster import API

TIMEOUT_S = 30.0
PAUSE_S = 0.15


class Asking:
    """Asks until it is left; use it in a ``with`` block, by a thread that is in the operator's network."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        """Answers by variant, and ``error``."""
        self._answered_at_s: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="asking", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(2 * TIMEOUT_S)

    def longest_silence_s(self, since_s: float) -> float:
        """Longest time without an answer from ``since_s`` (``time.monotonic``) to now."""
        times = [since_s, *(at_s for at_s in self._answered_at_s if at_s > since_s), time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def num_answers_since(self, since_s: float) -> int:
        """Answers from then to now."""
        return sum(at_s > since_s for at_s in self._answered_at_s)

    def _run(self) -> None:
        for number in itertools.count():
            if self._stop.wait(PAUSE_S):
                return
            answered_by = ask(f"user-{number % 40}")
            self.answers[answered_by or "error"] += 1
            if answered_by is not None:
                self._answered_at_s.append(time.monotonic())


def ask(user: str) -> str | None:
    """Who answered a question; None if nobody did."""
    body = {"model": "headrace", "prompt": "The function returns", "max_tokens": 8, "user": user}
    try:
        response = httpx.post(f"{API}/v1/completions", json=body, timeout=TIMEOUT_S)
    except httpx.HTTPError:
        return None
    return response.headers.get("x-headrace-variant", "champion") if response.is_success else None
