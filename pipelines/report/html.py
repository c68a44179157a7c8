"""Building HTML so that nothing can be forgotten: whatever is not ``Html`` is escaped, attributes too.

Jinja2 could replace these 50 lines, but not the page, whose parts are computed. Here mypy checks what goes into each part, and there is no `|safe`.
Documents are written by strangers. ``Html`` is made by the functions below only, from names that are constants of this package.
"""

import html
import re
from collections.abc import Iterable

_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
"""Control characters, and those that turn the direction of what follows them."""


class Html(str):
    """Markup. Everything in it that came from outside is escaped."""

    __slots__ = ()


Child = Html | str | int | None | Iterable["Child"]


def text(value: object) -> Html:
    """Any value as text; what cannot be seen or would disturb its surroundings becomes U+FFFD."""
    return value if isinstance(value, Html) else Html(html.escape(_INVISIBLE.sub("\ufffd", str(value)), quote=True))


def joined(children: Iterable[Child]) -> Html:
    """The children one after the other, None left out."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, str | int):
            parts.append(text(child))
        elif child is not None:
            parts.append(joined(child))
    return Html("".join(parts))


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """An element. ``class_`` and ``for_`` lose their underscore, others become hyphens; attributes that are None are left out."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items() if value is not None)
    return Html(f"<{name}{written}>{joined(children)}</{name}>")


def void(name: str, /, **attributes: object) -> Html:
    """An element without an end tag."""
    return Html(tag(name, **attributes).removesuffix(f"</{name}>"))


def bilingual(english: str, chinese: str) -> Html:
    """A label in both languages."""
    return joined([english, Html("&ensp;"), tag("span", chinese, lang="zh", class_="zh")])
