"""The main content of an HTML page: its article, without navigation, scripts, forms and imprint; the title is kept.

Invariant: never raises, whatever the page; takes at most time linear in the page's size. The extractor takes time quadratic in the depth of
the elements (10,000 nested: 1.5 s; 100,000: minutes), and parsers multiply formatting elements that are left open, and in the
number of a tag's attributes, so a page that may be deep or multiply loses its tags only.
Cost: 12-18 MB/s of HTML (resiliparse, C++). Source: https://resiliparse.chatnoir.eu/en/latest/man/extract/html2text.html
"""

import html
import re
from typing import NamedTuple

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

MAX_MULTIPLIED = 2_000_000
"""Open formatting elements times tags: how many elements a parser may make of them."""
MAX_ATTRIBUTES = 1_000
"""Of one tag: parsers compare each attribute's name with all before it."""
_ATTRIBUTE = r"""=?[^\s/>=]++(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>]*+))?+"""
_TAG = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style|textarea|title|xmp|iframe|noembed|noframes)\b.*?(?:</\1|\Z)"
    rf"|<(/?)([a-zA-Z][^\s/>]*+)((?:[\s/]++|{_ATTRIBUTE}|=)*+)",
    re.IGNORECASE | re.DOTALL,
)
"""Tags as a browser's tokenizer finds them: not within comments, scripts or quoted values. Never goes back, so linear."""
_ATTRIBUTES = re.compile(_ATTRIBUTE)
_VOID = ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr")
_UNNESTED = frozenset((*_VOID, "p", "li", "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "html", "head", "body"))
"""Elements that are void, or end where the next of them begins: without end tags they do not make a page deeper."""
_FORMATTING = frozenset(["a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u"])
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
    """Title and main content. Of a page that may be nested deeper than ``max_depth`` all text is taken."""
    page = page.replace("\x00", "")
    if not _is_harmless(page, max_depth):
        return _without_tags(page)
    tree = HTMLTree.parse(page)
    text = extract_plain_text(tree, main_content=True, alt_texts=False, list_bullets=False)
    return Page(_one_line(tree.title or ""), text.strip())


def _is_harmless(page: str, max_depth: int) -> bool:
    """Whether the page's tree is certainly small, from counts over its tags."""
    if page.count("<") < max_depth and len(page) < 2 * MAX_ATTRIBUTES:
        return True
    depth = deepest = formatting = most_formatting = num_tags = 0
    for _, slash, given_name, attributes in _TAG.findall(page):
        num_tags += 1
        if len(attributes) >= 2 * MAX_ATTRIBUTES and len(_ATTRIBUTES.findall(attributes)) > MAX_ATTRIBUTES:
            return False
        name = given_name.lower()
        if not name or name in _UNNESTED:
            continue
        step = -1 if slash else 1
        depth += step
        deepest = max(deepest, depth)
        if name in _FORMATTING:
            formatting += step
            most_formatting = max(most_formatting, formatting)
    return deepest < max_depth and most_formatting * num_tags < MAX_MULTIPLIED


def page_title(page: str) -> str | None:
    """The title alone, without building a tree."""
    found = _TITLE.search(page[:65_536])
    return _one_line(html.unescape(found[1])) if found else None


def _without_tags(page: str) -> Page:
    lines = (" ".join(line.split()) for line in html.unescape(_WITHOUT_TEXT.sub("\n", page)).split("\n"))
    return Page(page_title(page), "\n".join(line for line in lines if line))


def _one_line(text: str) -> str | None:
    return " ".join(text.split()) or None
