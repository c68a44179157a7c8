"""The main content of a parsed page: its visible text less what only leads elsewhere or belongs to the site.

(1) All visible text is taken (resiliparse's plain text keeps each character; its own main content loses text nodes of three bytes, lists and
short blocks). (2) Elements that by their kind, role or name are no content (navigation, footers, cookie banners, shared links) are left out, and
the page's <main> or only <article> is taken alone if most text is there. (3) Of the lines, menus go: runs of lines that are links, and short ones.
(4) Check: where (2) leaves less than MIN_KEPT of the text that is no link, its rules did not fit the page, and the text of (1) stays, less menus.

Invariant: what is kept is whole lines of visible text, in order, without a character lost; readings of ruby are not text.
Cost: two thirds of the speed that resiliparse's own main content had for pages of 10 KB, half for pages of 1 KB, where selectors are most of it.
Measured (benchmarks/html_extraction.py, 34 shapes of pages in three languages; F1, and the share of passages without a character lost):
.999 and .996; resiliparse .933 and .848, trafilatura 2.3.1 .955 and .943, readability-lxml 0.9 .896 and .792, all text .889 and .959.
Names of elements come from https://html.spec.whatwg.org/multipage/sections.html and https://www.w3.org/TR/wai-aria/#landmark_roles
"""

import re
from functools import lru_cache
from typing import Any, NamedTuple

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

MIN_KEPT = 0.25
"""Share of the visible text outside links that the content of a page has at least."""
MIN_FOCUS = 0.5
"""Share of a page's content that its <main> or <article> must have to stand for the page."""
MAX_LABEL_BYTES = 30
"""A link on a line of its own is a label ("Read more"), not a sentence, up to this length."""
MAX_NOTICE_BYTES = 400
MENU_LINKS = 3
_LINK_SHARE = 0.8
_MENU_SHARE = 0.6
_HIDDEN = ["rt", "rp", "template", "[hidden]", '[style*="display:none" i]', '[style*="display: none" i]']
_ROLES = ("navigation", "contentinfo", "search", "dialog", "alertdialog", "complementary", "menubar")
_NAMES = (
    "nav", "navbar", "navigation", "topnav", "menu", "main-menu", "site-header", "sidebar", "side-bar", "widget", "breadcrumb", "breadcrumbs",
    "footer", "site-footer", "share", "sharing", "social", "social-share", "related", "related-posts", "newsletter", "subscribe", "ad", "ads",
    "advert", "advertisement", "sponsored", "promo", "pagination", "pager", "toc", "skip-link", "cookie", "cookies", "cookie-banner",
    "cookie-bar", "cookie-notice", "cookie-consent", "cookie-law", "cookiebanner", "cookieconsent", "gdpr", "consent",
)  # fmt: skip
_BOILERPLATE = [
    *_HIDDEN,
    *("nav", "footer", "dialog", "amp-sidebar", "amp-ad", "amp-consent", "amp-user-notification", '[aria-hidden="true"]'),
    "aside:not(main aside, article aside)",  # within an article they are notes
    f"[role]:is({', '.join(f'[role={role}]' for role in _ROLES)})",
]
_FIGURE = re.compile(r"(</?)fig(?:ure|caption)(?=[\s/>])", re.IGNORECASE)
_ROOT_LINK = re.compile(r'<a href="(?:https?://[^/"]+)?/?(?:index\.\w+)?">')
_LINK = re.compile(r'<a href="[^"]*">')
_OPEN, _CLOSE, _OPEN_ROOT, _HEAD = "\x02", "\x03", "\x04", "\x05"
_MARKS = re.compile("[\x02-\x04]")
_ALL_MARKS = re.compile("[\x02-\x05]")
_LINKED = re.compile("[\x02\x04][^\x03]*\x03")
_PRE = re.compile(r"(<pre>.*?</pre>)", re.DOTALL)
_HEADING = re.compile(r"<h([1-6])>")
_TAG = re.compile(r"</?[a-z][a-z0-9]*>")
_BLANK = re.compile(r" *\t[ \t]*")
_MANY_BREAKS = re.compile(r"\n{3,}")
_COPYRIGHT = re.compile(r"\W*(?:©|\(c\)|copyright\b)", re.IGNORECASE)
_CONSENT = re.compile(r"(?=.*(?:cookie|クッキー))(?=.*(?:accept|agree|consent|settings|接受|同意|受け入れ|設定))", re.IGNORECASE | re.DOTALL)
_EDGE_LINES = 3
"""Consent is asked for in the first or last lines of a page."""


class _Line(NamedTuple):
    """A line of the page's text, and what it is made of."""

    text: str
    size: int
    """Characters that are no space."""
    num_linked: int
    """Of these, in links."""
    num_links: int
    heading: int
    """Its level; 0 if it is none."""
    leads_home: bool


def with_figures_as_blocks(page: str) -> str:
    """The page with <div> for <figure> and <figcaption>, which the extractor leaves out, and with them tables, code and quotations."""
    return _FIGURE.sub(r"\1div", page)


def main_content(tree: HTMLTree, page: str) -> str:
    """The content of a page and its tree; empty if there is none. The tree is changed."""
    if tree.body is None:
        return ""
    lowered = page.lower()
    boilerplate = _boilerplate(tuple(name for name in _NAMES if name in lowered))
    chosen = _marked(tree, boilerplate)
    size = _size(chosen)
    if size < MIN_KEPT * len(tree.body.text or "") and size < MIN_KEPT * _size(everything := _marked(tree, _HIDDEN)):
        chosen = everything
    elif _focus(tree, round(MIN_FOCUS * size)):
        focused = _marked(tree, boilerplate)
        chosen = focused if _size(focused) >= MIN_FOCUS * size else chosen
    lines = _without_menus(_lines(chosen))
    return _MANY_BREAKS.sub("\n\n", "\n".join(line.text for line in lines)).strip("\n")


@lru_cache(maxsize=1024)
def _boilerplate(names: tuple[str, ...]) -> list[str]:
    """The selectors of what is no content on a page in which these names occur: parsing those of all names takes longer than most pages."""
    if not names:
        return _BOILERPLATE
    named = ", ".join([*(f'[class~="{name}" i]' for name in names), *(f'[id="{name}" i]' for name in names)])
    return [*_BOILERPLATE, f":is([class], [id]):not(body, main, article):is({named})"]


def _focus(tree: HTMLTree, min_chars: int) -> bool:
    """Leave nothing in the body but its main element and, where that has no heading, the first one; whether there is one that is long enough."""
    body = tree.body
    assert body is not None
    found = (_only(body, selector) for selector in ('main, [role="main"]', "article", '[itemprop="articleBody"]'))
    main = next((node for node in found if node is not None and len(node.text or "") >= min_chars), None)
    if main is None:
        return False
    heading = body.query_selector("h1") if main.query_selector("h1, h2") is None else None
    body.replace_children(*([heading, main] if heading is not None else [main]))
    return True


def _only(body: Any, selector: str) -> Any:
    """The only such element. (A collection is not iterated: resiliparse 2.0.1 takes cubic time for that.)"""
    found = body.query_selector_all(selector)
    return found[0] if len(found) == 1 else None


def _marked(tree: HTMLTree, skipped: list[str]) -> str:
    """The visible text with its tags, and marks for what begins and ends links."""
    text = extract_plain_text(
        tree, preserve_formatting="minimal_html", main_content=False, links=True, list_bullets=False, alt_texts=False, skip_elements=skipped
    )
    return _LINK.sub(_OPEN, _ROOT_LINK.sub(_OPEN_ROOT, _ALL_MARKS.sub("", text))).replace("</a>", _CLOSE)


def _size(marked: str) -> int:
    """Characters that are in no link, about."""
    return len(_TAG.sub("", _LINKED.sub("", marked)))


def _lines(marked: str) -> list[_Line]:
    """The text in lines; blank ones separate paragraphs."""
    lines: list[_Line] = []
    is_link = leads_home = False
    for part in _PRE.split(marked):
        is_pre = part.startswith("<pre>")
        for line in _unescaped(_TAG.sub("", _HEADING.sub(_HEAD + r"\1", part))).split("\n"):
            num_linked = num_links = level = 0
            text = line if is_pre else line.strip()
            if text.startswith(_HEAD):
                level, text = int(text[1]), text[2:]
            if is_link or _CLOSE in text or _OPEN in text or _OPEN_ROOT in text:
                num_linked, num_links, is_link, leads_home = _linked(text, is_link, leads_home)
                text = _ALL_MARKS.sub("", text)
            if "\t" in text and not is_pre:
                text = _BLANK.sub("\t", text)
            lines.append(_Line(text.rstrip() if is_pre else text.strip(), _num_visible(text), num_linked, num_links, level, leads_home))
    return lines


def _linked(line: str, is_link: bool, leads_home: bool) -> tuple[int, int, bool, bool]:
    """Characters in links, links that begin, whether one is open at the end, and whether the last leads to the site's first page."""
    num_linked = num_links = 0
    start = 0
    for found in _MARKS.finditer(line):
        if found[0] != _CLOSE:
            num_links += 1
            is_link, leads_home, start = True, found[0] == _OPEN_ROOT, found.end()
        elif is_link:
            num_linked += _num_visible(line[start : found.start()])
            is_link = False
    if is_link:
        num_linked += _num_visible(line[start:])
    return num_linked, num_links, is_link, leads_home


def _unescaped(text: str) -> str:
    """Without the escapes that the extractor writes."""
    if "&" not in text:
        return text
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")


def _num_visible(text: str) -> int:
    return len(text) - text.count(" ") - text.count("\t")


def _without_menus(lines: list[_Line]) -> list[_Line]:
    """The lines without runs of links, labels, copyright and cookie notices, and without headings over nothing else."""
    shown = [number for number, line in enumerate(lines) if line.size]
    edges = {*shown[:_EDGE_LINES], *shown[-_EDGE_LINES:]}
    is_link = {number: _is_link(lines[number]) for number in shown}
    dropped: set[int] = set()
    for at, number in enumerate(shown):
        in_run = is_link[number] and any(is_link[other] for other in shown[max(0, at - 1) : at] + shown[at + 1 : at + 2])
        if in_run or _is_no_content(lines[number], number in edges):
            dropped.add(number)
    for before, number in zip(reversed(shown[:-1]), reversed(shown[1:]), strict=True):
        if number in dropped and is_link[number] and lines[before].heading > 1:
            dropped.add(before)
            is_link[before] = lines[before].heading > 2
    return [line for number, line in enumerate(lines) if number not in dropped]


def _is_link(line: _Line) -> bool:
    """Whether a line is nothing but links; a heading that is one names what follows."""
    return not line.heading and line.num_linked >= _LINK_SHARE * line.size


def _is_no_content(line: _Line, is_at_edge: bool) -> bool:
    if line.num_links and _is_link(line) and (line.num_links > 1 or len(line.text.encode()) <= MAX_LABEL_BYTES):
        return True
    if line.num_links >= MENU_LINKS and line.num_linked >= _MENU_SHARE * line.size:
        return True
    if line.heading and line.leads_home and line.num_linked >= _LINK_SHARE * line.size:
        return True
    is_notice = len(line.text) <= MAX_NOTICE_BYTES
    return is_notice and (_COPYRIGHT.match(line.text) is not None or (is_at_edge and _CONSENT.match(line.text) is not None))
