"""Main content of HTML pages: what is kept that should be, and what is kept that should not, beside other extractors.

    python -m benchmarks.html_extraction [--shapes] [--repeats 3]

The pages (benchmarks/html_pages.py) are of the shapes that the web has, in English, Chinese and Japanese. Recall and precision count words (of
Chinese and Japanese: characters), the mean over the pages; "whole" is the share of marked passages that come out without a character lost.
"plain" is all visible text; "resiliparse" its main content. Peers that are not installed are left out: ``pip install -e .[peers]``.
"""

import argparse
import importlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from resiliparse.extract.html2text import extract_plain_text

from benchmarks.html_pages import LabelledPage, labelled_pages
from benchmarks.machine import machine, versions
from pipelines.steps.formats.html import read_page
from schemas.settings_formats import FormatsSettings

_WORD = re.compile(r"[\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef]|[^\W\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef]+")
MAX_DEPTH = int(FormatsSettings.model_fields["html_max_depth"].default)


class Quality(NamedTuple):
    """Of one page, or the mean of several."""

    recall: float
    precision: float
    whole: float

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision."""
        return 2 * self.recall * self.precision / (self.recall + self.precision) if self.recall + self.precision else 0.0


def quality(page: LabelledPage, text: str) -> Quality:
    """How good a text is for what the page holds."""
    found = Counter(_WORD.findall(text))
    gold = Counter(word for part in page.gold for word in _WORD.findall(part))
    allowed = gold + Counter(word for part in page.neutral for word in _WORD.findall(part))
    squeezed = "".join(text.split())
    whole = sum("".join(part.split()) in squeezed for part in page.gold) / len(page.gold)
    return Quality((found & gold).total() / gold.total(), (found & allowed).total() / max(1, found.total()), whole)


def mean(results: list[Quality]) -> Quality:
    return Quality(*(sum(values) / len(values) for values in zip(*results, strict=True)))


def headrace(page: str) -> str:
    """The product."""
    return read_page(page, MAX_DEPTH).text


def extractors() -> Iterator[tuple[str, Callable[[str], str]]]:
    """The product, and the peers that are here."""
    yield "headrace", headrace
    yield "resiliparse", lambda page: str(extract_plain_text(page, main_content=True, alt_texts=False, list_bullets=False))
    yield "plain", lambda page: str(extract_plain_text(page, main_content=False, alt_texts=False, list_bullets=False))
    for name, load in (("trafilatura", _trafilatura), ("readability", _readability)):
        try:
            yield name, load()
        except ImportError:
            continue


def _trafilatura() -> Callable[[str], str]:
    module = importlib.import_module("trafilatura")
    return lambda page: module.extract(page) or ""


def _readability() -> Callable[[str], str]:
    module = importlib.import_module("readability")
    return lambda page: str(extract_plain_text(module.Document(page).summary(), main_content=False, alt_texts=False, list_bullets=False))


def measure(extract: Callable[[str], str], pages: list[LabelledPage]) -> list[Quality]:
    return [quality(page, extract(page.page)) for page in pages]


def main() -> None:
    parser = argparse.ArgumentParser(description="Main content of HTML pages.")
    parser.add_argument("--shapes", action="store_true", help="F1 of each shape")
    parser.add_argument("--repeats", type=int, default=3, help="passes over the pages for the speed")
    args = parser.parse_args()
    pages = list(labelled_pages())
    megabytes = sum(len(page.page.encode()) for page in pages) / 1e6
    print(f"{machine()}\n{versions('resiliparse', 'trafilatura', 'readability-lxml')}; {len(pages)} pages, {megabytes:.2f} MB")
    print(f"{'':22}{'recall':>9}{'precision':>11}{'F1':>8}{'whole':>8}{'en F1':>8}{'zh F1':>8}{'ja F1':>8}{'MB/s':>8}")
    shapes: dict[str, dict[str, float]] = {}
    for name, extract in extractors():
        results = measure(extract, pages)
        started = time.process_time()
        for _ in range(args.repeats):
            measure_speed(extract, pages)
        speed = args.repeats * megabytes / (time.process_time() - started)
        all_pages = mean(results)
        by_language = [mean([r for p, r in zip(pages, results, strict=True) if p.language == language]).f1 for language in ("en", "zh", "ja")]
        columns = "".join(f"{value:8.3f}" for value in (all_pages.f1, all_pages.whole, *by_language))
        print(f"{name:22}{all_pages.recall:9.3f}{all_pages.precision:11.3f}{columns}{speed:8.1f}")
        for shape in dict.fromkeys(page.name for page in pages):
            shapes.setdefault(shape, {})[name] = mean([r for p, r in zip(pages, results, strict=True) if p.name == shape]).f1
    if args.shapes:
        print("\nF1 by shape" + " " * 15 + "".join(f"{name:>13}" for name in next(iter(shapes.values()))))
        for shape, by_name in shapes.items():
            print(f"{shape:26}" + "".join(f"{value:13.3f}" for value in by_name.values()))


def measure_speed(extract: Callable[[str], str], pages: list[LabelledPage]) -> None:
    for page in pages:
        extract(page.page)


if __name__ == "__main__":
    main()
