"""The pages of the repository, in both languages, and the shell blocks in them that a reader is to run."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
NAMES = ("use", "guarantees", "performance", "settings", "kafka", "cluster", "kubernetes")
PAIRS = (("README.md", "README.zh-CN.md"), *((f"docs/{name}.md", f"docs/zh-CN/{name}.md") for name in NAMES))
"""Each page in English and in Chinese."""
PAGES = tuple(page for pair in PAIRS for page in pair)
FENCED = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(page: str) -> str:
    """The text of a page, by its path in the repository."""
    return (REPOSITORY / page).read_text("utf-8")


def shell_blocks(page: str) -> list[str]:
    """Blocks that run as they stand, in their order."""
    return [block for kind, block in FENCED.findall(text_of(page)) if kind == "sh"]


def commands(page: str) -> list[str]:
    """Lines of the page's blocks without comments, which are in the page's language; the drawing of the folders is left out for the same reason."""
    blocks = [block for _, block in FENCED.findall(text_of(page)) if not block.startswith("schemas/")]
    lines = [re.sub(r"(^|\s\s+)#.*", "", line).rstrip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]
