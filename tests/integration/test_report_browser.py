"""The report in a real browser: it fits a phone, asks the network for nothing, complains about nothing, and runs nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.report.examples import Example
from pipelines.report.facts import Rule, collect
from pipelines.report.page import render
from tests.chromium import Chromium, find_chromium
from tests.unit.test_report_page import HOSTILE, dataset

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    assert PROGRAM is not None
    with Chromium(PROGRAM) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real report, with the worst texts, names and numbers that a report can hold."""
    folder = tmp_path_factory.mktemp("browser")
    facts = collect(dataset(folder))
    long = Example("x" * 1024, "topic." + "y" * 240, 2**31 - 1, 2**62, "zh", 2**40, text=HOSTILE + "长" * 400 + "w" * 2000)
    facts = replace(facts, rules=(Rule("gopher_repetition/" + "r" * 100, 2**50, (long,)), *facts.rules), kept=(long, *facts.kept))
    path = folder / "report.html"
    path.write_text(render(facts), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "dark"), [(375, False), (375, True), (1280, False)])
def test_the_page_fits_the_screen_and_is_quiet(browser: Chromium, page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
    assert (
        browser.evaluate(
            "Math.min(...[...document.querySelectorAll('main p, main td, main span')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
        >= 12
    )
    assert browser.requests() == [page.as_uri()]
    assert browser.complaints() == []
    assert browser.evaluate("document.scripts.length + document.images.length") == 0
    assert browser.evaluate("document.querySelectorAll('svg rect').length") > 20
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == ("rgb(20, 24, 27)" if dark else "rgb(251, 250, 247)")
    picture = tmp_path / "report.png"
    browser.screenshot(picture)
    assert picture.stat().st_size > 20_000


def test_what_was_written_is_what_is_read(browser: Chromium, page: Path) -> None:
    browser.open(page, width=375)
    shown = browser.evaluate("document.querySelector('details blockquote').textContent")
    assert shown.startswith(HOSTILE[:40])
