"""What the files for containers and Kubernetes are compared with: the lock, the settings, the commands."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from schemas.settings import Settings
from schemas.settings_sources import load_settings

REPOSITORY = Path(__file__).parents[1]
DOCKER = REPOSITORY / "ops" / "docker"
KUBERNETES = REPOSITORY / "ops" / "k8s"


def documents(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return [dict(document) for document in yaml.safe_load_all(path.read_text("utf-8"))]


def locked(package: str) -> str:
    """The version of a package in the lock of what runs."""
    found = re.search(rf"^{re.escape(package)}==(\S+)$", (REPOSITORY / "requirements.lock").read_text("utf-8"), re.MULTILINE)
    assert found, f"{package} is not locked"
    return found[1]


def settings_of(environment: Mapping[str, str], toml: str = "") -> Settings:
    """What Headrace makes of a container's environment; a name that is no setting is an error."""
    return load_settings(toml, environment)
