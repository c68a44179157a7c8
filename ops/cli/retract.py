"""``headrace retract ID…``: publish retractions, which remove documents from all later dataset versions.

A retraction takes out what was published under the id before it. Whoever publishes the id again afterwards brings the document back: ingest
warns of that, and ``headrace trace`` says it. Documents that were dropped as duplicates of a retracted one are lost with it: they are listed
here, and ``--restore-duplicates`` publishes them again out of Kafka, behind the retraction.
"""

import argparse
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.cli.output import print_json, say, tell
from ops.cli.trace import as_json
from schemas.settings import Settings

if TYPE_CHECKING:
    from pipelines.dataset.retractions.lost import Lost

RESTORED_AT_ONCE = 100
"""Documents that are read from Kafka before they are published."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = subparsers.add_parser("retract", parents=[common], help="remove documents from all later dataset versions")
    parser.add_argument("document", nargs="+", help="a document id; `headrace trace` finds it by URL or by place")
    parser.add_argument("--reason", help="why; the event records it")
    parser.add_argument(
        "--restore-duplicates", action="store_true", help="publish again the documents that were dropped as exact or near duplicates of these"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Publish one event per document; it takes effect with the version that reads it."""
    from datetime import UTC, datetime

    from pipelines.kafka.replays import publish, retraction_record
    from pipelines.kafka.topics import topic_ids, topic_names

    topic, doc_ids = topic_names(settings).documents, list(dict.fromkeys(args.document))
    topic_ids(settings, [topic])
    now = datetime.now(UTC)
    known = [_known(settings, doc_id) for doc_id in doc_ids]  # before a follower can have read what is published next
    lost = _lost(settings, doc_ids)
    places = publish(settings, [retraction_record(doc_id, args.reason, now) for doc_id in doc_ids])
    told = [{"id": doc_id, **place._asdict(), **facts} for doc_id, place, facts in zip(doc_ids, places, known, strict=True)]
    for entry in told:
        own = [document for document in lost if document.duplicate_of == entry["id"]]
        entry["lost_duplicates"] = _restored(settings, own, entry["partition"]) if args.restore_duplicates else [as_json(each) for each in own]
    if args.json:
        print_json({"topic": topic, "retractions": told})
    else:
        _tell(topic, told, are_restored=args.restore_duplicates)
    return 1 if any(document.get("not_restored") for entry in told for document in entry["lost_duplicates"]) else 0


def _tell(topic: str, told: list[dict[str, Any]], *, are_restored: bool) -> None:
    for entry in told:
        tell(f"{entry['id']}: retraction published at {topic}/{entry['partition']}/{entry['offset']}; {_advice(entry)}")
        for document in entry["lost_duplicates"]:
            fate = f"dropped in version {document['dataset_version']} as its duplicate ({document['reason']})"
            if why := document.get("not_restored"):
                fate += f", not published again: {why}"
            elif are_restored:
                fate += f", published again at {topic}/{document['restored']['partition']}/{document['restored']['offset']}"
            tell(f"  {document['id']} ({document['position']}): {fate}")
    say(
        "it takes effect with the next version (of a running `headrace up`, or `headrace ingest --once`); models that were trained before do not "
        "change (`headrace trace ID` lists them)"
    )
    say("it acts on what was published before it: whoever publishes the id again brings the document back, and ingest warns of that")
    if not are_restored and any(entry["lost_duplicates"] for entry in told):
        say("the documents that were dropped as its duplicates are lost too; --restore-duplicates publishes these similar texts again")


def _lost(settings: Settings, doc_ids: list[str]) -> "list[Lost]":
    from pipelines.dataset.dataset import Dataset
    from pipelines.dataset.retractions.lost import lost_duplicates
    from schemas.errors import DatasetNotFound

    try:
        return lost_duplicates(Dataset(Path(settings.root)), doc_ids)
    except DatasetNotFound:
        return []


def _restored(settings: Settings, lost: "list[Lost]", partition: int) -> list[dict[str, Any]]:
    """Publish the documents again behind the retraction, which stands in this partition; each with where it stands now, or why it does not."""
    from pipelines.ingest.restoring import restored_records
    from pipelines.kafka.replays import publish

    told: list[dict[str, Any]] = []
    found = restored_records(settings, lost)
    while batch := list(itertools.islice(found, RESTORED_AT_ONCE)):
        records = [record for _, record in batch if not isinstance(record, str)]
        placed = iter(publish(settings, records, partition))
        for document, record in batch:
            outcome = {"not_restored": record} if isinstance(record, str) else {"restored": next(placed)._asdict()}
            told.append(as_json(document) | outcome)
    return told


def _known(settings: Settings, doc_id: str) -> dict[str, Any]:
    """What the committed versions know of the document."""
    from pipelines.kafka.topics import topic_names
    from pipelines.lineage.lineage import trace
    from schemas.errors import DatasetError

    try:
        fates = trace(Path(settings.root), doc_id, deadletter_topic=topic_names(settings).deadletter)
    except DatasetError:
        fates = []
    of_id = [fate for fate in fates if fate.doc_id == doc_id and fate.outcome != "retracted"]
    kept = [fate for fate in of_id if fate.outcome == "kept" and fate.retracted_in is None]
    return {
        "kept_in": [fate.dataset_version for fate in kept],
        "retracted_in": [fate.retracted_in for fate in of_id if fate.retracted_in is not None],
        "duplicate_of": sorted({fate.duplicate_of for fate in of_id if fate.duplicate_of} - {doc_id}),
        "stands_for": [] if of_id else sorted({fate.doc_id for fate in fates if fate.doc_id}),
    }


def _advice(entry: dict[str, Any]) -> str:
    if entry["kept_in"]:
        return f"kept in version {', '.join(map(str, entry['kept_in']))}, to be masked from the next one on"
    if entry["duplicate_of"]:
        others = ", ".join(entry["duplicate_of"])
        return f"it was dropped as a duplicate, and a text like it is kept under {others}: retract that too if the text must go"
    if entry["retracted_in"]:
        return f"it is retracted already, since version {', '.join(map(str, entry['retracted_in']))}"
    if entry["stands_for"]:
        ids = " ".join(entry["stands_for"])
        return f"nothing has this id; as a URL or a place it stands for {ids}: give that to `headrace retract`"
    return "no committed version keeps a document of this id"
