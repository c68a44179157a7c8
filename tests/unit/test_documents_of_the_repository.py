"""What the repository says about itself is true: settings file, README links to tests, both languages in step."""

import re
from pathlib import Path

import pytest

from schemas.settings import Settings
from schemas.settings_file import render
from schemas.settings_sources import load_settings

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh-CN.md")


def blocks(text: str) -> list[str]:
    """Indented commands of a README, comments cut off: they are in its language."""
    lines = [line.split("  #")[0].strip() for line in text.splitlines() if line.startswith("    ")]
    return [line for line in lines if line.startswith(("make ", "headrace ", "ray "))]


def test_the_settings_file_lists_every_setting_with_its_default() -> None:
    text = (ROOT / "headrace.toml").read_text("utf-8")
    assert text == render(), "run `make schemas`"
    assert load_settings(text, {}) == Settings()


@pytest.mark.parametrize("name", READMES)
def test_every_test_that_a_readme_names_exists(name: str) -> None:
    named = re.findall(r"`(tests/[^`]+)`", (ROOT / name).read_text("utf-8"))
    assert named
    for entry in named:
        path, _, function = entry.partition("::")
        assert (ROOT / path).exists(), entry
        assert not function or f"def {function}(" in (ROOT / path).read_text("utf-8"), entry


def test_both_readmes_show_the_same_commands() -> None:
    english, chinese = (blocks((ROOT / name).read_text("utf-8")) for name in READMES)
    assert english == chinese
