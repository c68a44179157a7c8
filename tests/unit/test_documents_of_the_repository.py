"""What the repository says about itself is true: settings file, links, tests that pages name; both languages in step."""

import re

import pytest

from schemas.settings import Settings
from schemas.settings_file import render
from schemas.settings_sources import load_settings
from tests.documents import PAGES, PAIRS, REPOSITORY, commands, text_of

GUARANTEES = ("docs/guarantees.md", "docs/zh-CN/guarantees.md")


def named_tests(page: str) -> list[str]:
    return re.findall(r"`(tests/[^`]+)`", text_of(page))


def test_the_settings_file_lists_every_setting_with_its_default() -> None:
    text = (REPOSITORY / "headrace.toml").read_text("utf-8")
    assert text == render(), "run `make schemas`"
    assert load_settings(text, {}) == Settings()


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page: str) -> None:
    for entry in named_tests(page):
        path, _, function = entry.partition("::")
        assert (REPOSITORY / path).exists(), entry
        assert not function or f"def {function}(" in (REPOSITORY / path).read_text("utf-8"), entry


def test_both_languages_promise_what_the_same_tests_prove() -> None:
    english, chinese = map(named_tests, GUARANTEES)
    assert english == chinese and len(english) > 30


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_to_one(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text_of(page)):
        if "://" not in target:
            assert ((REPOSITORY / page).parent / target).is_file(), target


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_show_the_same_commands_and_numbers(english: str, chinese: str) -> None:
    assert commands(english) == commands(chinese)
    assert [line.count("|") for line in text_of(english).splitlines() if line.startswith("|")] == [
        line.count("|") for line in text_of(chinese).splitlines() if line.startswith("|")
    ]


def test_settings_that_pages_name_exist() -> None:
    for page in PAGES:
        for section, key in re.findall(r"`(?:--set )?([a-z_]+)\.([a-z_]+)(?:=[^`]*)?`", text_of(page)):
            if section in Settings.model_fields:
                assert key in type(getattr(Settings(), section)).model_fields, f"{page}: {section}.{key}"
