"""Work that a thread does while the process goes on with other things. A process that ends before it does not wait for it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Background(Generic[Result]):
    """One call of a function, which begins at once."""

    def __init__(self, function: Callable[[], Result], name: str) -> None:
        self._future: Future[Result] = Future()
        threading.Thread(target=self._run, args=(function,), name=name, daemon=True).start()

    def is_done(self) -> bool:
        """Whether ``result`` does not wait."""
        return self._future.done()

    def result(self) -> Result:
        """What the function returned, or what it raised."""
        return self._future.result()

    def _run(self, function: Callable[[], Result]) -> None:
        try:
            self._future.set_result(function())
        except BaseException as error:  # noqa: BLE001 (raised again by ``result``)
            self._future.set_exception(error)
