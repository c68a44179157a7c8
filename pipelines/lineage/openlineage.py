"""OpenLineage run events of dataset versions: START when a version is planned, COMPLETE when it is committed, FAIL when it is given up.

Each event is a file ``<root>/lineage/00000012-<attempt>-start.json`` and, with ``telemetry.openlineage_url``, one POST. They inform; nothing rests on
them: whatever goes wrong here is logged and the commit goes on. A receiver that fails is left alone for PAUSE_S, so that it costs at most
TIMEOUT_S in that time. A killed attempt leaves a START without an end; the next attempt has another run id.

Built and sent by hand: openlineage-python (1.54) adds 0.4 s and 400 modules to the start of ingest, and its transport tries five times while the
commit waits. The tests validate every event with it.
The run id follows from the attempt, so that events told twice are recognisable. Offsets are the facet ``headrace_kafkaOffsets`` of the topic.
Source: https://openlineage.io/spec/2-0-2/OpenLineage.json
"""

import json
import logging
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pipelines.dataset.dataset import FOLDER
from pipelines.dataset.writer import VersionPlan
from pipelines.storage.mirror import mirror_of
from pipelines.storage.store import file_names, remove, write_bytes
from schemas.arrow import DOCUMENTS
from schemas.errors import StoreUnavailable
from schemas.manifest import DatasetManifest, OffsetRange
from schemas.settings import Settings

SCHEMA_URL = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
_FACETS = "https://openlineage.io/spec/facets"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:headrace:run")
LINEAGE = "lineage"
JOB = "headrace.ingest"
TIMEOUT_S = 2.0
PAUSE_S = 60.0
MAX_FILES = 1_000
"""Newest event files that are kept."""
MAX_MESSAGE_CHARS = 2_000
_FILE = re.compile(r"^\d{8}-[0-9a-f]{12}-(start|complete|fail)\.json\Z")
EventType = Literal["START", "COMPLETE", "FAIL"]
_log = logging.getLogger(__name__)


class Lineage:
    """Tells what happens to the versions of one dataset; ``started`` first, then one of ``completed`` and ``failed``."""

    def __init__(self, settings: Settings) -> None:
        self._folder = Path(settings.root) / LINEAGE
        self._url = settings.telemetry.openlineage_url
        self._kafka = f"kafka://{settings.kafka.bootstrap_servers.partition(',')[0].strip() or 'localhost'}"
        self._root = Path(settings.root).resolve()
        self._plan: VersionPlan | None = None
        self._quiet_until = 0.0

    def started(self, plan: VersionPlan) -> None:
        """A version was planned: its offsets are fixed."""
        self._plan = plan
        self._tell("START", plan, {}, {})

    def completed(self, manifest: DatasetManifest) -> None:
        """That version is committed."""
        if self._plan is not None and self._plan.version == manifest.version:
            self._tell("COMPLETE", self._plan, _output_facets(manifest), {}, manifest.created_at)
        self._plan = None

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Tells of the failure if the block raises after ``started``."""
        try:
            yield
        except BaseException as error:
            self.failed(error)
            raise

    def failed(self, error: BaseException) -> None:
        """The version that was started is given up; nothing happens if none was."""
        if self._plan is not None:
            facet = _facet("1-0-1/ErrorMessageRunFacet", message=f"{type(error).__name__}: {error}"[:MAX_MESSAGE_CHARS], programmingLanguage="PYTHON")
            self._tell("FAIL", self._plan, {}, {"errorMessage": facet})
        self._plan = None

    def _tell(self, kind: EventType, plan: VersionPlan, output: dict[str, Any], run: dict[str, Any], at: datetime | None = None) -> None:
        event = self._event(kind, plan, output, run, at or datetime.now(UTC))
        data = json.dumps(event, ensure_ascii=False, indent=1).encode()
        try:
            write_bytes(self._folder / f"{plan.version:08d}-{plan.attempt}-{kind.lower()}.json", data)
            self._forget_oldest()
        except (OSError, StoreUnavailable) as error:
            _log.warning("an OpenLineage event could not be written: %s", error)
        if self._url and time.monotonic() >= self._quiet_until:
            self._post(data)

    def _event(self, kind: EventType, plan: VersionPlan, output: dict[str, Any], run: dict[str, Any], at: datetime) -> dict[str, Any]:
        facets: dict[str, Any] = {
            "schema": _facet("1-1-1/SchemaDatasetFacet", fields=[{"name": field.name, "type": str(field.type)} for field in DOCUMENTS]),
            "version": _facet("1-0-1/DatasetVersionDatasetFacet", datasetVersion=str(plan.version)),
        }
        outputs = _place(self._root / FOLDER) | {"facets": facets, "outputFacets": output}
        return {
            "eventType": kind,
            "eventTime": at.astimezone(UTC).isoformat(),
            "producer": _producer(),
            "schemaURL": SCHEMA_URL,
            "run": {"runId": run_id(plan.attempt), "facets": run},
            "job": {"namespace": "headrace", "name": JOB, "facets": {}},
            "inputs": [self._input(plan, topic, ranges) for topic, ranges in sorted(plan.offsets.items())],
            "outputs": [outputs],
        }

    def _input(self, plan: VersionPlan, topic: str, ranges: Mapping[int, OffsetRange]) -> dict[str, Any]:
        partitions = [{"partition": number, "startOffset": span.start, "endOffset": span.end} for number, span in sorted(ranges.items())]
        offsets = _facet(None, topicId=plan.topic_ids.get(topic), partitions=partitions)
        count = _facet("1-0-0/InputStatisticsInputDatasetFacet", rowCount=sum(len(span) for span in ranges.values()))
        return {"namespace": self._kafka, "name": topic, "facets": {}, "inputFacets": {"headrace_kafkaOffsets": offsets, "inputStatistics": count}}

    def _post(self, data: bytes) -> None:
        import httpx

        try:
            httpx.post(self._url, content=data, headers={"content-type": "application/json"}, timeout=TIMEOUT_S).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self._quiet_until = time.monotonic() + PAUSE_S
            _log.warning("an OpenLineage event could not be sent to %s: %s; the next try is in %g s", self._url, error, PAUSE_S)

    def _forget_oldest(self) -> None:
        for name in sorted(file_names(self._folder, _FILE))[:-MAX_FILES]:
            remove(self._folder / name)


def _place(folder: Path) -> dict[str, Any]:
    """Name of the dataset after OpenLineage's rules for files and for buckets."""
    mirror = mirror_of(folder)
    if mirror is None:
        return {"namespace": "file", "name": str(folder)}
    scheme, _, rest = mirror.objects.url.partition("://")
    bucket, _, prefix = rest.partition("/")
    return {"namespace": f"{scheme}://{bucket}", "name": "/".join(part for part in (prefix, mirror.key(folder)) if part)}


def run_id(attempt: str) -> str:
    """The run's UUID: a function of the attempt, which the manifest and every file name carry."""
    return str(uuid.uuid5(NAMESPACE, attempt))


def _producer() -> str:
    return f"urn:headrace:{quote(distribution_version('headrace'))}"


def _facet(schema: str | None, **fields: Any) -> dict[str, Any]:
    """A facet of the specification, or one of our own, which are base facets with fields of their own."""
    url = f"{_FACETS}/{schema}.json" if schema else "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/InputDatasetFacet"
    return {"_producer": _producer(), "_schemaURL": url, **fields}


def _output_facets(manifest: DatasetManifest) -> dict[str, Any]:
    size = sum(entry.size_bytes for entry in (*manifest.shards, *manifest.documents, *manifest.dedup_segments))
    outcomes = {str(outcome): count for outcome, count in manifest.outcomes.items()}
    own = {"_producer": _producer(), "_schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/OutputDatasetFacet"}
    return {
        "outputStatistics": _facet("1-0-2/OutputStatisticsOutputDatasetFacet", rowCount=manifest.num_records, size=size),
        "headrace_outcomes": own | {"outcomes": outcomes, "tokens": manifest.num_tokens, "shards": len(manifest.shards)},
    }
