"""Documents that every machine with Headrace has: real prose about Python and its packages, and a small Chinese set.

chinese      texts written for Headrace (chinese.jsonl)
topics       the language reference's help topics (``pydoc_data``)
packages     the descriptions of the installed distributions
docstrings   per module of the standard library and the installed packages, the docstrings of the module, its classes and functions,
             read from the source without importing or parsing it

Invariant: on one machine the order is always the same, and the parts 1/n … n/n are disjoint and together all of it. The small sets are
mixed with the docstrings from the start, so that a first part of any size has something of each. Sources are read as they are needed:
a second to list them, then about 1 ms per document.
"""

import hashlib
import json
import os
import pydoc_data.topics
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from importlib.resources import files
from inspect import cleandoc
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

from ops.producing.findings import Found
from schemas.events import DocumentReceived

MIN_CHARS = 400
MAX_CHARS = 20_000
MAX_SOURCE_BYTES = 300_000
DOCSTRINGS_PER_OTHER = 4
"""How many docstring documents stand between two of the small sets."""
_SKIPPED_FOLDERS = frozenset({"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"})


_DOCSTRING = re.compile(r'(?:\A(?:[ \t]*(?:#[^\n]*)?\n)*|:[ \t]*\n[ \t]*)[rR]?"""(.*?)"""', re.DOTALL)
"""A triple-quoted string that begins the file or a block. Parsing would be exact, and fifty times slower."""


@dataclass(frozen=True)
class Share:
    """Part ``index`` (from 1) of ``count``."""

    index: int = 1
    count: int = 1

    def has(self, doc_id: str) -> bool:
        """Whether the document belongs to this part; decided by its id alone."""
        return _digest(doc_id) % self.count == self.index - 1


WHOLE = Share()


class _Source(NamedTuple):
    """Where a document will come from, if it turns out to be one."""

    doc_id: str
    read: Callable[[], DocumentReceived | None]


def sample_documents(share: Share = WHOLE) -> Iterator[Found]:
    """The share's documents in their fixed order."""
    others = _shuffled(chain(_chinese(), _topics(), _packages()), share)
    docstrings = _shuffled(_modules(), share)
    groups = zip_longest(others, *[docstrings] * DOCSTRINGS_PER_OTHER)
    for source in chain.from_iterable(groups):
        document = source.read() if source else None
        if document is not None:
            yield Found(document.id or "", document)


def _digest(doc_id: str) -> int:
    return int.from_bytes(hashlib.sha256(doc_id.encode()).digest()[:8])


def _shuffled(sources: Iterator[_Source], share: Share) -> Iterator[_Source]:
    """The share's sources, ordered by a hash other than the one that decides the share."""
    unique = {source.doc_id: source for source in sources if share.has(source.doc_id)}
    return iter(sorted(unique.values(), key=lambda source: _digest(f"order {source.doc_id}")))


def _chinese() -> Iterator[_Source]:
    for line in files("ops.producing").joinpath("chinese.jsonl").read_text(encoding="utf-8").splitlines():
        document = DocumentReceived.model_validate(json.loads(line))
        yield _Source(document.id or "", lambda document=document: document)  # type: ignore[misc]


def _topics() -> Iterator[_Source]:
    for name, text in pydoc_data.topics.topics.items():
        yield _text_source(f"sample/topics/{name}", text, name)


def _packages() -> Iterator[_Source]:
    for distribution in distributions():
        name = str(distribution.metadata["Name"])
        yield _text_source(f"sample/packages/{name}", _description(distribution), name)


def _description(distribution: Distribution) -> str:
    payload = distribution.metadata.get_payload() or distribution.metadata.get("Description")  # type: ignore[attr-defined]
    return str(payload or "")


def _text_source(doc_id: str, text: str, title: str) -> _Source:
    return _Source(doc_id, lambda: _document(doc_id, text, title))


def _document(doc_id: str, text: str, title: str) -> DocumentReceived | None:
    """None if the text is too short to be worth it; a long one is cut at a line's end. Half surrogates have no place in a record."""
    text = text.encode("utf-8", "replace").decode().strip()
    if len(text) < MIN_CHARS:
        return None
    if len(text) > MAX_CHARS:
        text = text[:MAX_CHARS].rpartition("\n")[0] or text[:MAX_CHARS]
    return DocumentReceived(id=doc_id, text=text, title=title, lang="en", domain="python")


def _modules() -> Iterator[_Source]:
    paths = sysconfig.get_paths()
    for root in dict.fromkeys([paths["stdlib"], paths["purelib"], paths["platlib"]]):
        for file in _python_files(root):
            name = file[len(root) + 1 : -len(".py")].replace(os.sep, ".").removesuffix(".__init__")
            yield _module_source(f"sample/docstrings/{name}", file, name)


def _python_files(root: str) -> Iterator[str]:
    """Source files below a folder, in no order; tests and other roots are left out. 20,000 files take 0.3 s."""
    for folder, folders, files_here in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        yield from (f"{folder}{os.sep}{name}" for name in files_here if name.endswith(".py"))


def _module_source(doc_id: str, file: str, name: str) -> _Source:
    return _Source(doc_id, lambda: _document(doc_id, _docstrings(file, name), name))


def _docstrings(file: str, name: str) -> str:
    """The module's name and its docstrings in their order; empty where the source cannot be read."""
    try:
        path = Path(file)
        source = path.read_bytes() if path.stat().st_size <= MAX_SOURCE_BYTES else b""
    except OSError:
        return ""
    found = [cleandoc(match.group(1)) for match in _DOCSTRING.finditer(source.decode("utf-8", "replace"))]
    return "\n\n".join([name, *filter(None, found)]) if found else ""
