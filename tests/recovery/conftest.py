"""What crash tests of ingest compare with. Each file has its own fixture ``source``: a topic, and the dataset that a run without crashes made."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.ingest_harness import Ingest, state


@pytest.fixture(scope="module")
def reference(source: Ingest) -> list[dict[str, Any]]:
    """The state of the file's source."""
    return state(source.root)


@pytest.fixture
def ingest(source: Ingest, tmp_path: Path) -> Ingest:
    """An empty root that reads the same topic with the same settings."""
    return replace(source, root=tmp_path / "data")
