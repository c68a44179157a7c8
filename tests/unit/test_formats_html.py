"""The main content of pages: what is text stays, to the character; what only leads elsewhere goes."""

import importlib.util

import pytest

from benchmarks.html_extraction import MAX_DEPTH, extractors, headrace, mean, measure, quality
from benchmarks.html_pages import LabelledPage, labelled_pages
from pipelines.steps.formats.html import read_page

PAGES = list(labelled_pages())


def text_of(page: str) -> str:
    return read_page(page, MAX_DEPTH).text


def test_no_character_is_lost_though_it_stands_alone() -> None:
    page = "<p>这样做是<em>不</em>可以的，也没有人会这样做。</p><p>第<b>三</b>条：价格<span>￥</span>30<span>元</span>。</p>"
    assert text_of(page) == "这样做是不可以的，也没有人会这样做。\n\n第三条：价格￥30元。"
    for character in "不水あ가€—é★":
        page = f"<h1>{character}</h1><p>x<b>{character}</b>y</p><table><tr><td>{character}</td></tr></table><pre>{character}</pre>"
        assert text_of(page).split() == [character, f"x{character}y", character, character]


def test_readings_go_and_the_words_stay() -> None:
    page = "<ruby>私<rt>わたし</rt></ruby>は<ruby>学生<rp>(</rp><rt>がくせい</rt><rp>)</rp></ruby>です"
    assert text_of(page) == "私は学生です"


def test_a_list_within_an_article_stays() -> None:
    page = (
        "<body><article><h1>Bread</h1><p>A loaf for four people that keeps for a week.</p><ul><li>200 grams of flour from the mill</li>"
        "<li>100 ml of water</li></ul><p>Mix all and bake it for forty minutes.</p></article>"
    )
    lines = ["Bread", "A loaf for four people that keeps for a week.", "200 grams of flour from the mill", "100 ml of water"]
    assert [line for line in text_of(page).split("\n") if line] == [*lines, "Mix all and bake it for forty minutes."]


def test_a_page_of_a_heading_and_eight_long_items_keeps_them_all() -> None:
    items = [f"Item {n} says at some length what the miller does on day {n} of the week." for n in range(8)]
    page = "<body><h1>The week</h1><ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"
    assert [line for line in text_of(page).split("\n") if line] == ["The week", *items]


def test_captions_code_and_tables_in_figures_stay() -> None:
    page = "<h1>A</h1><figure><img><figcaption>The wheel</figcaption></figure><FIGURE class=x><pre>if a &lt; b:\n    turn()</pre></FIGURE>"
    assert text_of(page) == "A\n\nThe wheel\n\nif a < b:\n    turn()"


def test_escapes_in_the_page_are_characters_once() -> None:
    assert text_of("<p>&lt;b&gt; &amp;lt; &amp;amp;copy; &quot;x&quot; &#2;y<a href='\">'>z</a></p>") == '<b> &lt; &amp;copy; "x" yz'


@pytest.mark.parametrize("attributes", ["class=sidebar", "class='x Menu'", "id=footer", "role=navigation", "class=cookie-banner"])
def test_rules_that_would_take_all_of_a_page_do_not_fit_it(attributes: str) -> None:
    story = "<h1>Big news</h1><p>The old mill stands by the river and turns. Its wheel has not stopped for a hundred years.</p>"
    page = f"<nav><a href=/a>Home</a><a href=/b>About</a></nav><div {attributes}>{story}</div>"
    assert text_of(page).split("\n")[0] == "Big news" and "hundred years." in text_of(page) and "Home" not in text_of(page)
    beside = f"<div {attributes}><p>Not this one.</p></div><div>{story}</div>"
    assert "Not this" not in text_of(beside)


def test_a_page_of_links_alone_has_no_content() -> None:
    assert text_of("<body><ul><li><a href=/1>One</a></li><li><a href=/2>Two</a></li></ul><p><a href=/3>Three and four</a></p>") == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.name} {page.language}")
def test_each_shape_of_page_keeps_its_content_and_little_else(page: LabelledPage) -> None:
    found = quality(page, headrace(page.page))
    assert found.whole >= 0.9
    assert found.recall >= 0.95
    assert found.precision >= 0.9


@pytest.mark.parametrize("name", ["resiliparse", "plain", "trafilatura", "readability"])
def test_the_extractor_is_better_than_the_peers_on_the_set(name: str) -> None:
    peers = dict(extractors())
    if name not in peers:
        pytest.skip(f"needs {name} (pip install -e .[peers])")
    sample = PAGES if name in ("resiliparse", "plain") else PAGES[::4]
    ours, theirs = mean(measure(headrace, sample)), mean(measure(peers[name], sample))
    assert ours.f1 > theirs.f1 and ours.whole > theirs.whole


def test_peers_that_are_installed_are_measured() -> None:
    named = {"trafilatura": "trafilatura", "readability": "readability"}
    assert {name for name, module in named.items() if importlib.util.find_spec(module)} <= {name for name, _ in extractors()}
