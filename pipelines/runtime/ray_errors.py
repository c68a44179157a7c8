"""What an error of Ray hides: it wraps what a task raised, sometimes more than once."""

from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import HeadraceError


def has_cause(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether one of these errors lies behind it."""
    while error is not None:
        if isinstance(error, kinds):
            return True
        error = getattr(error, "cause", None) or error.__cause__
    return False


def original(error: BaseException) -> BaseException:
    """The HeadraceError that a task raised, if that is what happened, without the advice that Ray Data appends to its message."""
    innermost: BaseException = error
    while (inner := getattr(innermost, "cause", None) or innermost.__cause__) is not None and not type(innermost).__module__.startswith("schemas"):
        innermost = inner
    if not isinstance(innermost, HeadraceError):
        return error
    innermost.args = (str(innermost).partition("\n")[0],)
    return innermost


@contextmanager
def original_errors() -> Iterator[None]:
    """Raise what tasks raised instead of Ray's wrapping."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        raise original(error) from error
