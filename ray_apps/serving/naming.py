"""Names of the Serve applications of one root: ``headrace-<root>-<hash>-gateway``, ``headrace-<root>-<hash>-model-<version>``.

Invariant: two roots on one cluster never share a name, and a name that is not exactly one of these is somebody else's application, which is
neither counted nor touched. ``<hash>`` is the beginning of a hash of the root's path, which is the same on every node; ``<root>`` is its last part,
for people, and left out where that is ``headrace``.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.storage.mirror import root_name

_GATEWAY = re.compile(r"headrace-([A-Za-z0-9._-]+-)?[0-9a-f]{8}-gateway")


@dataclass(frozen=True, slots=True)
class ApplicationNames:
    """The names of one root's applications. Made by ``application_names``."""

    prefix: str

    @property
    def gateway(self) -> str:
        """The gateway."""
        return f"{self.prefix}-gateway"

    def model(self, version: int) -> str:
        """The engine of a model version."""
        return f"{self.prefix}-model-{version}"

    def version_of(self, name: str) -> int | None:
        """The model version whose engine this is; None for any other application."""
        found = re.fullmatch(rf"{re.escape(self.prefix)}-model-([1-9][0-9]*)", name)
        return int(found[1]) if found else None

    def is_ours(self, name: str) -> bool:
        """Whether the application belongs to this root."""
        return name == self.gateway or self.version_of(name) is not None


def application_names(root: str | Path) -> ApplicationNames:
    """The names under a root."""
    digest = hashlib.sha256(str(Path(root).resolve()).encode()).hexdigest()[:8]
    name = root_name(Path(root).resolve())
    return ApplicationNames(f"{name if name == 'headrace' or name.startswith('headrace-') else f'headrace-{name}'}-{digest}")


def is_gateway(name: str) -> bool:
    """Whether this is the gateway of some root."""
    return _GATEWAY.fullmatch(name) is not None
