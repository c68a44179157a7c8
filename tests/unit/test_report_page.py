"""The report's page: complete, self-contained, and harmless whatever the documents say."""

import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipelines.drift.watch import release
from pipelines.report.examples import Example
from pipelines.report.facts import Facts, Rule, collect
from pipelines.report.html import tag, text
from pipelines.report.page import POLICY, render
from schemas.errors import DatasetNotFound
from schemas.settings import Settings
from tests.factories import commit_records, text_settings
from tests.ingest_harness import CHINESE, ENGLISH

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>' onload='x' </style></title></blockquote> & &amp; \u202e"
Value = tuple[bytes | None, bytes | None]


def value(doc_id: str, text: str, **more: object) -> Value:
    return doc_id.encode(), json.dumps({"id": doc_id, "text": text, **more}, ensure_ascii=False).encode()


def batch(prefix: str, number: int, chinese: float, hostile: bool = False) -> list[Value]:
    """Documents of three sources; some too short, some twice, some broken, one retracted."""
    rng = random.Random(prefix)
    values: list[Value] = []
    texts: list[str] = []
    for index in range(number):
        is_chinese = rng.random() < chinese
        words = rng.choices(list(CHINESE) if is_chinese else ENGLISH.split(), k=rng.choice((3, 20, 60, 200, 800)))
        again = texts and rng.random() < 0.15
        texts.append(texts[0] if again and rng.random() < 0.6 else rng.choice(texts) if again else ("" if is_chinese else " ").join(words))
        source = rng.choice(("web", "web", "books", "forum"))
        values.append(value(f"{prefix}-{index}", texts[-1], source=source, domain=f"{source}-{rng.randrange(4)}.example"))
    if hostile:
        values.append(value(HOSTILE[:60], f"{HOSTILE} {' '.join(ENGLISH.split() * 3)}", source=HOSTILE, domain=HOSTILE))
        values.append(value("short" + HOSTILE[:40], HOSTILE[:20], source=HOSTILE))
    return [*values, (b"broken", b"{"), (f"{prefix}-1".encode(), None)]


def dataset(root: Path, number: int = 120) -> Settings:
    """Three versions, the last of them drifting to Chinese and hostile."""
    settings = text_settings(root, **{"drift.min_documents": 40})
    for prefix, chinese, hostile in (("a", 0.2, False), ("b", 0.2, False), ("c", 0.8, True)):
        commit_records(root, batch(prefix, number, chinese, hostile), settings)
    return settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return dataset(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def facts(settings: Settings) -> Facts:
    return collect(settings)


class Elements(HTMLParser):
    """Elements and attributes as a browser would find them; every element that is opened must be closed in order."""

    VOID = frozenset({"meta", "link"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        self.attributes += attributes
        if name not in self.VOID:
            self._open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name


def test_the_page_says_what_happened(facts: Facts) -> None:
    page = render(facts)
    for words in (
        "Dataset version 3",
        "Flow of outcomes",
        "结局",
        "drifting",
        "language (PSI",
        "rejected: <code>too_short</code>",
        "Largest duplicate clusters",
    ):
        assert words in page, words
    assert facts.drift is not None and facts.drift.is_drifting
    assert {rule.name for rule in facts.rules} >= {"too_short"} and sum(item.num_exact for item in facts.clusters) > 0
    assert {item.language for item in facts.kept} >= {"en", "zh"}


def test_nothing_that_a_document_says_becomes_markup(facts: Facts) -> None:
    hostile = Example(HOSTILE, HOSTILE, 0, 1, HOSTILE, 5, text=HOSTILE * 3)
    loud = replace(facts, rules=(Rule(HOSTILE, 1, (hostile,)),), kept=(hostile,), notes=[HOSTILE])
    quiet = replace(loud, rules=(Rule("r", 1, (replace(hostile, doc_id="i", topic="t", language="l", text="x"),)),), kept=(hostile,), notes=["n"])
    page = render(loud)
    found = Elements(page)
    assert found.tags == Elements(render(quiet)).tags
    assert not {"script", "img", "iframe", "object", "a", "form"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert "<script" not in page and "\u202e" not in page
    assert "&lt;script&gt;" in render(facts), "the source of the hostile document stands there as text"


def test_the_page_needs_nothing_from_outside(facts: Facts) -> None:
    page = render(facts)
    links = [given for name, given in Elements(page).attributes if name in ("src", "href", "action", "data", "poster", "srcset")]
    assert links == ["data:,"]
    assert "url(" not in page and "@import" not in page
    assert ("content", POLICY) in Elements(page).attributes


def test_retracted_documents_are_not_shown(settings: Settings, facts: Facts) -> None:
    for last in (1, 3):
        assert not {item.doc_id for item in collect(settings, last=last).kept} & {"a-1", "b-1", "c-1"}


def test_what_a_later_version_retracted_is_not_shown_of_an_older_one(tmp_path: Path) -> None:
    settings = text_settings(tmp_path)
    commit_records(tmp_path, [value(f"doc-{index}", f"{ENGLISH} {' '.join(ENGLISH.split()[index:])} {index}") for index in range(2)], settings)
    assert "doc-0" in {item.doc_id for item in collect(settings, 1).kept}
    commit_records(tmp_path, [(b"doc-0", None)], settings)
    assert "doc-0" not in {item.doc_id for item in collect(settings, 1).kept}


def test_texts_that_cannot_be_read_back_are_noted(settings: Settings) -> None:
    found = collect(settings, num_examples=2)
    assert any("texts of rejected documents are not shown" in note for note in found.notes)
    assert all(item.text is None for rule in found.rules for item in rule.examples)


def test_a_window_of_versions_adds_up(settings: Settings) -> None:
    found = collect(settings, last=3)
    assert found.statistics.total.num_records == found.manifest.totals.num_records
    assert "Dataset versions 1 to 3" in render(found)


def test_the_first_version_has_a_report_too(settings: Settings) -> None:
    assert "Nothing to compare with yet" in render(collect(settings, 1))
    with pytest.raises(DatasetNotFound):
        collect(settings, 4)


def test_a_version_in_which_nothing_was_kept_has_a_report(tmp_path: Path) -> None:
    settings = text_settings(tmp_path)
    commit_records(tmp_path, [value(f"{number}", "short") for number in range(3)], settings)
    page = render(collect(settings))
    assert "<b>0%</b>" in page and Elements(page).tags


def test_a_released_version_is_called_released(tmp_path: Path) -> None:
    settings = dataset(tmp_path, number=50)
    facts = collect(settings)
    release(tmp_path, 3, "fine", facts.manifest.created_at)
    page = render(collect(settings))
    assert "A person released this version" in page and not re.search(r'class="mark over"', page)


def test_markup_is_escaped_unless_it_was_built_here() -> None:
    assert tag("p", "<b>", tag("i", "&"), title='"') == '<p title="&quot;">&lt;b&gt;<i>&amp;</i></p>'
    assert text("a\x00b\u202ec") == "a\ufffdb\ufffdc"
