"""The commands that the loop runs: the same that a person would type, with the same settings.

Children get every setting through their environment (``HEADRACE_<SECTION>__<KEY>``), secrets included, so nothing secret stands on a
command line or on disk; the few settings that say where things are stand on the command line too, for whoever looks at ``ps``.
"""

import sys
from typing import Any

from pydantic import BaseModel, SecretStr

from pipelines.runtime.cluster import own_job
from pipelines.storage.mirror import named_root
from schemas.settings import Settings
from schemas.settings_sources import ENV_PREFIX, ENV_ROOT


def headrace(settings: Settings, command: str, *arguments: str) -> tuple[str, ...]:
    """Command line of ``headrace COMMAND`` for these settings. ``-P``: the working folder must not shadow our packages."""
    where = ["--root", named_root(settings.root)]
    if command != "broker":
        where += ["--bootstrap-servers", settings.kafka.bootstrap_servers, "--set", f"ray.address={settings.ray.address}"]
    return (sys.executable, "-P", "-m", "ops.cli.main", command, *arguments, *where)


def child_environment(settings: Settings) -> dict[str, str]:
    """Environment that makes a child read exactly these settings, whatever ``headrace.toml`` says, and be a job of its own on Ray."""
    environment = {ENV_ROOT: named_root(settings.root), **own_job()}
    for section, values in settings:
        if isinstance(values, BaseModel):
            named = {f"{ENV_PREFIX}{section}__{key}".upper(): value for key, value in values if value is not None}
            environment |= {name: _text(value) for name, value in named.items()}
    return environment


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_text(part) for part in value)
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value).lower() if isinstance(value, bool) else str(value)
