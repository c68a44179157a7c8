"""Live traffic through the real HTTP API: many users, short questions in two languages, answers counted by who gave them."""

import itertools
import threading
from collections import Counter
from types import TracebackType
from typing import Any, Self

import httpx

MAX_TOKENS = 16
REQUEST_TIMEOUT_S = 60.0
NUM_CLIENTS = 2
PAUSE_S = 0.25
"""Between two questions of a client: the machine has other things to do."""
PROMPTS = (
    "The function returns",
    "A list is",
    "This module provides",
    "To install the package",
    "An exception is raised when",
    "水车是一种",
    "今天的天气",
    "The following example shows",
)


class Traffic:
    """Clients that ask until they are stopped; use it in a ``with`` block."""

    def __init__(self, api_url: str) -> None:
        self._url = api_url
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask_on, name=f"client-{number}", daemon=True) for number in range(NUM_CLIENTS)]
        self.answers: Counter[str] = Counter()
        """Answers by ``champion``, ``challenger`` or ``error``."""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(REQUEST_TIMEOUT_S)

    def _ask_on(self) -> None:
        with httpx.Client(base_url=self._url, timeout=REQUEST_TIMEOUT_S) as client:
            while not self._stop.is_set():
                answered_by = self._ask(client, next(self._numbers))
                with self._lock:
                    self.answers[answered_by] += 1
                self._stop.wait(PAUSE_S)

    def _ask(self, client: httpx.Client, number: int) -> str:
        body = {"model": "headrace", "prompt": PROMPTS[number % len(PROMPTS)], "max_tokens": MAX_TOKENS, "user": f"demo-user-{number}"}
        try:
            response = client.post("/v1/completions", json=body)
        except httpx.HTTPError:
            return "error"
        return response.headers.get("x-headrace-variant", "champion") if response.is_success else "error"


def complete(api_url: str, prompt: str, max_tokens: int = 32) -> str | None:
    """One completion by the champion, the same one each time; None if there is no answer."""
    body: dict[str, Any] = {"model": "headrace", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.7, "seed": 1, "user": "demo"}
    try:
        response = httpx.post(f"{api_url}/v1/completions", json=body, timeout=REQUEST_TIMEOUT_S)
    except httpx.HTTPError:
        return None
    return str(response.json()["choices"][0]["text"]) if response.is_success else None


def is_healthy(api_url: str) -> bool:
    """Whether the champion answers."""
    try:
        return httpx.get(f"{api_url}/health", timeout=2.0).is_success
    except httpx.HTTPError:
        return False
