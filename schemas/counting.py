"""A number and what it counts, as English writes it."""


def counted(number: int, noun: str) -> str:
    """``1 document``, ``1,200 documents``; for nouns whose plural only adds an s to the last word."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
