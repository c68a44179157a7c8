"""What a release says of its parts: whose work it stands on, and that what runs is locked apart from what checks it."""

import re
import tomllib
from pathlib import Path

from ops.packaging.notice import pinned

REPOSITORY = Path(__file__).parents[2]


def lock(name: str) -> list[str]:
    return pinned((REPOSITORY / name).read_text(encoding="utf-8"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_notice_names_each_package_of_the_lock_with_a_licence() -> None:
    lines = re.findall(r"^  (\S+): (.+)$", (REPOSITORY / "NOTICE").read_text(encoding="utf-8"), re.MULTILINE)
    told = dict(lines)
    assert [name for name in lock("requirements.lock") if name not in told] == []
    assert all(told.values())


def test_what_checks_the_product_is_in_a_lock_of_its_own() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {kind: {canonical(re.split(r"[\[<>=;! ]", line)[0]) for line in lines} for kind, lines in project["optional-dependencies"].items()}
    runtime, checks = ({canonical(name) for name in lock(file)} for file in ("requirements.lock", "requirements-dev.lock"))
    assert {canonical(re.split(r"[\[<>=;! ]", line)[0]) for line in project["dependencies"]} <= runtime
    assert names["dev"] <= checks and not names["dev"] & runtime
    assert not runtime & checks
