"""Which Headrace this is: every manifest says who wrote it, so that another one can tell what is newer than itself from what is damaged."""

import importlib.metadata
import subprocess
from functools import cache
from pathlib import Path


@cache
def code_version() -> str:
    """Version of the distribution, with the commit where the code runs from a git checkout."""
    version = importlib.metadata.version("headrace")
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return version
    try:
        done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=checkout, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+{done.stdout.strip()}"
