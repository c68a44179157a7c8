"""The progress that an ingest reports. This class reports nothing; the command line draws bars."""

from pipelines.ingest.freshness import VersionTimes
from schemas.manifest import DatasetManifest

FOLLOWING = "following "
WAITING = "waiting: "
"""How a line begins that says that `ingest --follow` reads the topic, or waits. `up` takes either as ready."""


class Progress:
    """Called from the thread that ingests; override what is of interest. Must not raise."""

    def started(self, version: int, num_records: int) -> None:
        """A micro-batch of so many offsets begins."""

    def advanced(self, num_records: int) -> None:
        """So many of them are packed."""

    def committed(self, manifest: DatasetManifest, times: VersionTimes) -> None:
        """The version is visible."""

    def following(self, topic: str) -> None:
        """The stream can be read, and the settings can be used."""

    def waiting(self, reason: str) -> None:
        """Nothing can be done at the moment."""
