"""``headrace retract ID…``: publish retractions, which remove documents from all later dataset versions."""

import argparse
from pathlib import Path
from typing import Any

from ops.cli.output import print_json, say, tell
from schemas.settings import Settings


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = subparsers.add_parser("retract", parents=[common], help="remove documents from all later dataset versions")
    parser.add_argument("document", nargs="+", help="a document id; `headrace trace` finds it by URL or by place")
    parser.add_argument("--reason", help="why; the event records it")
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
    places = publish(settings, [retraction_record(doc_id, args.reason, now) for doc_id in doc_ids])
    told = [{"id": doc_id, **place._asdict(), **facts} for doc_id, place, facts in zip(doc_ids, places, known, strict=True)]
    if args.json:
        print_json({"topic": topic, "retractions": told})
        return 0
    for entry in told:
        tell(f"{entry['id']}: retraction published at {topic}/{entry['partition']}/{entry['offset']}; {_advice(entry)}")
    say("it takes effect with the next version (`headrace ingest`); models that were trained before do not change (`headrace trace ID` lists them)")
    return 0


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
    if entry["duplicate_of"]:
        others = ", ".join(entry["duplicate_of"])
        return f"it was dropped as a duplicate, and a text like it is kept under {others}: retract that too if the text must go"
    if entry["kept_in"]:
        return f"kept in version {', '.join(map(str, entry['kept_in']))}, to be masked from the next one on"
    if entry["retracted_in"]:
        return f"it is retracted already, since version {', '.join(map(str, entry['retracted_in']))}"
    if entry["stands_for"]:
        ids = " ".join(entry["stands_for"])
        return f"nothing has this id; as a URL or a place it stands for {ids}: give that to `headrace retract`"
    return "no committed version keeps a document of this id"
