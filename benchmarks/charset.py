"""Character sets found without a declaration: how many texts come out as they were, by set and length, beside other detectors.

    python -m benchmarks.charset [--texts 100] [--corpus FILE]

Texts of the corpus are encoded in each set and read again. Counted is what matters: that the text comes out as it was (ends and a
byte order mark aside), not that the set's name is right. ``headrace`` is pipelines.steps.formats.charset.decode_text without a declared set;
the others are their detectors' first guesses, decoded as browsers would; those that are not installed are left out.
"""

import argparse
import importlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from benchmarks.corpus import CORPUS, keep_to_one_core, read_documents
from benchmarks.machine import machine, versions
from pipelines.steps.formats.charset import codec, decode_text
from schemas.errors import EnvelopeError

SETS = {
    "zh": ("gb18030", "gbk", "utf-16"),
    "zh-tw": ("big5", "utf-16-be"),
    "ja": ("shift_jis", "euc_jp", "utf-16"),
    "ko": ("euc_kr", "utf-16-le"),
    "ru": ("cp1251", "koi8-r"),
    "de": ("iso8859-1", "cp1252"),
    "fr": ("iso8859-1",),
    "es": ("iso8859-1",),
    "pl": ("iso8859-2", "cp1250"),
    "el": ("cp1253",),
    "tr": ("cp1254",),
    "ar": ("cp1256",),
}
"""Sets that texts of a language came in before UTF-8. Those with an ``-le`` or ``-be`` have no byte order mark."""
LENGTHS = (60, 200, 2_000)
MIN_FOREIGN = {"zh": 0.2, "zh-tw": 0.2, "ja": 0.2, "ko": 0.2, "ru": 0.3, "el": 0.3, "ar": 0.3}
"""Share of characters beyond ASCII; elsewhere one such character is enough."""


class Case(NamedTuple):
    """A text as it came."""

    lang: str
    charset: str
    length: int
    text: str
    data: bytes


def cases(corpus: Path, texts: int) -> list[Case]:
    """``texts`` texts at most of each language, set and length."""
    documents = read_documents(corpus)
    return [case for lang in SETS for length in LENGTHS for case in _of_language(documents, lang, length, texts)]


def _of_language(documents: list[dict[str, str]], lang: str, length: int, texts: int) -> Iterator[Case]:
    counts = dict.fromkeys(SETS[lang], 0)
    for document in documents:
        if document["lang"] != lang or len(document["text"]) < 2 * length:
            continue
        start = len(document["text"]) // 3
        text = " ".join(document["text"][start : start + length].split())
        if sum(not character.isascii() for character in text) <= MIN_FOREIGN.get(lang, 0.0) * len(text):
            continue
        for charset in SETS[lang]:
            if counts[charset] < texts:
                data = text.encode(charset, "ignore")  # the few characters that the set does not have
                counts[charset] += 1
                yield Case(lang, charset, length, data.decode(charset), data)


def headrace(data: bytes) -> str:
    """The product."""
    try:
        return decode_text(data, None)
    except EnvelopeError:
        return ""


def detectors() -> Iterator[tuple[str, Callable[[bytes], str]]]:
    """The product and the detectors that are here."""
    yield "headrace", headrace
    for name, guess in _GUESSES.items():
        try:
            module = importlib.import_module("resiliparse.parse.encoding" if name == "resiliparse" else name)
        except ImportError:
            continue
        yield name, partial(_decode, module, guess)


_GUESSES: dict[str, Callable[[Any, bytes], str | None]] = {
    "resiliparse": lambda module, data: module.detect_encoding(data, html5_compatible=False),
    "charset_normalizer": lambda module, data: getattr(module.from_bytes(data).best(), "encoding", None),
    "chardet": lambda module, data: module.detect(data)["encoding"],
    "cchardet": lambda module, data: module.detect(data)["encoding"],
}


def _decode(module: ModuleType, guess: Callable[[Any, bytes], str | None], data: bytes) -> str:
    return data.decode(codec(guess(module, data)) or "utf-8", "replace")


def accuracy(found: list[Case], decode: Callable[[bytes], str]) -> dict[tuple[str, int], float]:
    """Share of the texts that came out as they were, by set and length."""
    right: dict[tuple[str, int], list[bool]] = {}
    for case in found:
        text = decode(case.data).removeprefix("\ufeff")
        right.setdefault((f"{case.lang} {case.charset}", case.length), []).append(text.strip() == case.text.strip())
    return {key: sum(flags) / len(flags) for key, flags in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Character sets without a declaration.")
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    args = parser.parse_args()
    if not args.corpus.exists():
        print(f"no corpus in {args.corpus}: name one with --corpus")
        return
    keep_to_one_core()
    found = cases(args.corpus, args.texts)
    megabytes = sum(len(case.data) for case in found) / 1e6
    columns: dict[str, dict[tuple[str, int], float]] = {}
    speeds = {}
    for name, decode in detectors():
        started = time.process_time()
        columns[name] = accuracy(found, decode)
        speeds[name] = megabytes / (time.process_time() - started)
    print(f"{machine()}\n{versions('resiliparse', 'charset-normalizer', 'chardet')}; share of texts that come out as they were; MB/s of CPU")
    print(f"{len(found):,} texts, {megabytes:.1f} MB\n{'':22}" + "".join(f"{name:>20}" for name in columns))
    for key in columns["headrace"]:
        print(f"{key[0]:16}{key[1]:6}" + "".join(f"{column[key]:20.3f}" for column in columns.values()))
    for length in LENGTHS:
        means = [[share for key, share in column.items() if key[1] == length] for column in columns.values()]
        print(f"{'mean of sets':16}{length:6}" + "".join(f"{sum(shares) / len(shares):20.3f}" for shares in means))
    print(f"{'MB/s':22}" + "".join(f"{speed:20.1f}" for speed in speeds.values()))


if __name__ == "__main__":
    main()
