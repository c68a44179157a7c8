"""Pauses between attempts: they double, up to a limit, and go on at the limit for ever."""

MAX_DOUBLINGS = 60
"""Of a float that began at a nanosecond: more than any limit asks for, and far from the largest float."""


def pause_s(first_s: float, failures: int, most_s: float) -> float:
    """Seconds to wait after so many failures in a row (from 1): ``first_s``, then twice as long each time, at most ``most_s``."""
    return min(first_s * 2.0 ** min(failures - 1, MAX_DOUBLINGS), most_s)
