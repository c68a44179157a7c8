"""The error that a task raised, behind the error of Ray that wraps it, sometimes more than once."""

from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import HeadraceError


def has_cause(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether one of these errors lies behind it."""
    return any(isinstance(each, kinds) for each in _chain(error))


def original(error: BaseException) -> BaseException:
    """The HeadraceError or OSError that a task raised, if that is what happened; of Ray Data's message without the advice that it appends."""
    for each in _chain(error):
        if isinstance(each, (HeadraceError, OSError)) and not _is_wrapped(each):
            if isinstance(each, HeadraceError) and each is not error:
                each.args = (str(each).partition("\n")[0],)
            return each
    return error


@contextmanager
def original_errors() -> Iterator[None]:
    """Raise what tasks raised instead of Ray's wrapping."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        if (found := original(error)) is error:
            raise
        raise found from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what lies behind it, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "cause", None) or error.__cause__


def _is_wrapped(error: BaseException) -> bool:
    """Whether it is Ray's wrapping, which is also of the class of what it wraps."""
    import ray

    return isinstance(error, ray.exceptions.RayError)
