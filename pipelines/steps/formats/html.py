"""An HTML page read: its main content (content.py) and its title.

Invariant: never raises, whatever the page. Pages that would be slow lose their tags only: those nested deeper than ``max_depth`` (the extractor's
time is quadratic in the depth; found in the parsed tree, exactly), and those whose tags, counted before parsing, may make the parser slow:
formatting elements left open, which it opens again in every block, very many attributes or options, depth times tags.
What remains: the counts are no parser; a page contrived to nest behind them could still take the parser quadratic time, but none of 160
kinds that were tried (300 to 500 KB) takes more than 0.8 s, and time up to the allowed depth is 2 s for a megabyte.
Cost: that of content.py, parsing (50 MB/s), and the counts (25 MB/s). Source:
https://resiliparse.chatnoir.eu/en/latest/man/extract/html2text.html and https://html.spec.whatwg.org/multipage/parsing.html
"""

import html
import re
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from resiliparse.parse.html import HTMLTree

from pipelines.steps.formats.content import main_content, with_figures_as_blocks

MAX_MULTIPLIED = 2_000_000
"""Open formatting elements times tags: how many elements a parser may make of them."""
MAX_ATTRIBUTES = 1_000
"""Of one tag: parsers compare each attribute's name with all before it. The tags <html> and <body> count as one, as parsers join them."""
MAX_LISTED = 5_000
"""Options of all lists, and ruby annotations: parsers look at all before."""
MAX_STEPS = 200_000_000
"""Depth times tags: parsers look through the open elements at many tags."""
_SPACE = r"\t\n\f\r "
_ATTRIBUTE = rf"""=?[^{_SPACE}/>=]++(?:[{_SPACE}]*+=[{_SPACE}]*+(?:"[^"]*+"|'[^']*+'|[^{_SPACE}>]*+))?+"""
_TAG = re.compile(
    r"<!--(?:-?>|.*?(?:--!?>|\Z))|<[!?][^>]*+>?+|</(?![a-z])[^>]*+>?+"
    r"|<(script|style|textarea|title|xmp|iframe|noembed|noframes)\b.*?(?:</\1|\Z)"
    rf"|<(/?)([a-z][^{_SPACE}/>]*+)((?:[{_SPACE}/]++|{_ATTRIBUTE}|=)*+)",
    re.IGNORECASE | re.DOTALL,
)
"""Tags as a browser's tokenizer finds them: not within comments, scripts or quoted values. Never goes back, so linear."""
_ATTRIBUTES = re.compile(_ATTRIBUTE)
_FORMATTING = frozenset(["a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u"])
_LISTED = frozenset(["option", "optgroup", "rb", "rp", "rt", "rtc"])
_JOINED = frozenset(["html", "body"])
_VOID = ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr")
_UNNESTED = frozenset((*_VOID, "p", "li", "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "html", "head", "body"))
"""Elements that are void, or end where the next of them begins: without end tags they do not make a page deeper."""
_SCOPES = frozenset(
    ["applet", "button", "caption", "frameset", "html", "marquee", "math", "noscript", "object", "select", "svg", "table", "td", "template", "th"]
)
"""An end tag within one of these, or after it, may not end a formatting element that began before."""
_LOOKS_LIKE_PAGE = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?(?><!--.*?-->\s*)*+<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
_WITHOUT_TEXT = re.compile(r"<(?:script\b.*?(?:</script|\Z)|style\b.*?(?:</style|\Z)|!--.*?(?:-->|\Z)|[^>]*(?:>|\Z))", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"<title[^>]{0,200}>([^<]{0,1000})", re.IGNORECASE)


class Page(NamedTuple):
    """What is kept of a page."""

    title: str | None
    text: str
    """Empty if the page has no content."""


def looks_like_page(text: str) -> bool:
    """Whether a text begins as HTML pages begin."""
    return _LOOKS_LIKE_PAGE.match(text[:4096]) is not None


def read_page(page: str, max_depth: int) -> Page:
    """Title and main content. Of a page that is nested ``max_depth`` deep or deeper all text is taken."""
    page = page.replace("\x00", "")
    if not _can_be_parsed(page):
        return _without_tags(page)
    tree = HTMLTree.parse(with_figures_as_blocks(page))
    if tree.document is None or tree.document.query_selector(_deeper_than(max_depth)) is not None:
        return _without_tags(page)
    title = _one_line(tree.title or "")
    return Page(title, main_content(tree, page))


@lru_cache(maxsize=8)
def _deeper_than(max_depth: int) -> str:
    """The selector of elements with so many levels. Takes a twentieth of the extractor's time."""
    return " > ".join("*" * max_depth)


def _can_be_parsed(page: str) -> bool:
    """Whether parsing is certainly quick and the tree not much larger than the page, from counts over its tags."""
    if len(page) < 2 * MAX_ATTRIBUTES:
        return True
    tags = _TAG.findall(page)
    return _are_attributes_few(tags) and (len(tags) ** 2 < MAX_MULTIPLIED or _are_open_few(tags))


def _are_attributes_few(tags: list[tuple[str, str, str, str]]) -> bool:
    num_joined = 0
    for _, _, name, attributes in tags:
        is_joined = name.lower() in _JOINED
        if not is_joined and len(attributes) < 2 * MAX_ATTRIBUTES:
            continue
        num_attributes = len(_ATTRIBUTES.findall(attributes))
        num_joined += num_attributes if is_joined else 0
        if max(num_attributes, num_joined) > MAX_ATTRIBUTES:
            return False
    return True


def _are_open_few(tags: list[tuple[str, str, str, str]]) -> bool:
    num_open = Counter[str]()
    num_stuck = most_formatting = depth = deepest = num_listed = 0
    for _, slash, given_name, _ in tags:
        name = given_name.lower()
        if name in _SCOPES:
            for other in _FORMATTING:
                num_stuck += num_open.pop(other, 0)
        if not name or name in _UNNESTED:
            continue
        if not slash:
            num_open[name] += 1
            depth += 1
            deepest = max(deepest, depth)
            num_listed += name in _LISTED
            if name in _FORMATTING:
                most_formatting = max(most_formatting, num_stuck + sum(num_open[other] for other in _FORMATTING))
        elif num_open[name]:
            num_open[name] -= 1
            depth -= 1
    return num_listed <= MAX_LISTED and most_formatting * len(tags) < MAX_MULTIPLIED and deepest * len(tags) < MAX_STEPS


def page_title(page: str) -> str | None:
    """The title alone, without building a tree."""
    found = _TITLE.search(page[:65_536])
    return _one_line(html.unescape(found[1])) if found else None


def _without_tags(page: str) -> Page:
    lines = (" ".join(line.split()) for line in html.unescape(_WITHOUT_TEXT.sub("\n", page)).split("\n"))
    return Page(page_title(page), "\n".join(line for line in lines if line))


def _one_line(text: str) -> str | None:
    return " ".join(text.split()) or None
