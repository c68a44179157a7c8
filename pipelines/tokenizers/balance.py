"""The texts that a tokenizer is trained on: each language with the same weight, as far as it has text.

A stream that begins nearly all in English would leave Chinese with single bytes, two or three tokens a character, for the life of the dataset.
So a language with less text than the largest one is repeated, MAX_COPIES times at most: a handful of documents shall not have a vocabulary.

Invariant: what comes out is a function of the texts and their order. Cost: the texts that are held, ``max_bytes`` of each language at most, and
training on up to ``max_bytes``.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping

MAX_COPIES = 32


class Gathered:
    """Texts by language, in the order in which they came."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._texts: dict[str, list[str]] = {}
        self.sizes: dict[str, int] = {}
        """Bytes of them in UTF-8."""

    def add(self, texts: Iterable[str], languages: Iterable[str]) -> None:
        """A language that has ``max_bytes`` gets no more."""
        for text, language in zip(texts, languages, strict=True):
            if self.sizes.get(language, 0) < self._max_bytes:
                self._texts.setdefault(language, []).append(text)
                self.sizes[language] = self.sizes.get(language, 0) + len(text.encode())

    def balanced(self) -> Iterator[str]:
        """Texts of ``max_bytes`` in all, or less: of each language its share, repeated until it is full; the last text may cross it."""
        for language, share in shares(self.sizes, self._max_bytes).items():
            given = 0
            for text in itertools.cycle(self._texts[language]):
                if given >= share:
                    break
                yield text
                given += len(text.encode())


def shares(sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """Bytes that each language gives, with repetitions."""
    largest = max(sizes.values(), default=0)
    return level({language: min(largest, MAX_COPIES * size) for language, size in sizes.items() if size}, budget)


def level(sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """Share a budget as evenly as the sizes allow: what small languages cannot use goes to the others."""
    given: dict[str, int] = {}
    left = budget
    for place, (language, size) in enumerate(sorted(sizes.items(), key=lambda item: (item[1], item[0]))):
        given[language] = min(size, left // (len(sizes) - place))
        left -= given[language]
    return given
