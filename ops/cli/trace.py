"""``headrace trace <document id | URL | topic/partition/offset>``: what became of a document, and which models trained on it."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.cli.output import print_json, say, tell
from schemas.counting import counted
from schemas.errors import DatasetError, DatasetNotFound
from schemas.settings import Settings

if TYPE_CHECKING:
    from pipelines.dataset.retractions.lost import Lost
    from pipelines.lineage.lineage import Fate


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = subparsers.add_parser("trace", parents=[common], help="show what became of a document, from offset to model")
    parser.add_argument("document", help="a document id, the URL that it came from, or topic/partition/offset")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print every record that carried the document; exit code 1 if there is none."""
    from pipelines.ingest.presence import is_ingest_running
    from pipelines.kafka.topics import topic_names
    from pipelines.lineage.lineage import trace

    try:
        fates = trace(Path(settings.root), args.document, deadletter_topic=topic_names(settings).deadletter)
    except DatasetError as error:
        if type(error) in (DatasetError, DatasetNotFound) and not is_ingest_running(Path(settings.root)):  # else it may still read the document
            say(f"no ingest is running for {settings.root}, so no new records are being read: start `headrace up`, or run `headrace ingest --once`")
        raise
    lost = _lost(Path(settings.root), fates)
    if args.json:
        print_json(_as_json(args.document, fates) | {"lost_duplicates": [as_json(document) for document in lost]})
        return 0
    for fate in fates:
        tell(sentence(fate))
    for document in lost:
        tell(lost_sentence(document))
    if lost:
        say(f"`headrace retract {shlex.join({document.duplicate_of: None for document in lost})} --restore-duplicates` publishes them again")
    return 0


def _lost(root: Path, fates: "list[Fate]") -> "list[Lost]":
    """Duplicates that are lost with documents that are retracted and not kept again."""
    from pipelines.dataset.dataset import Dataset
    from pipelines.dataset.retractions.lost import lost_duplicates

    kept = [fate for fate in fates if fate.outcome == "kept" and fate.doc_id is not None]
    gone = {fate.doc_id for fate in kept if fate.doc_id} - {fate.doc_id for fate in kept if fate.retracted_in is None}
    return lost_duplicates(Dataset(root), gone) if gone else []


def as_json(document: "Lost") -> dict[str, Any]:
    """A lost duplicate as plain JSON values."""
    return {"id": document.doc_id, "position": document.place} | document._asdict()


def lost_sentence(document: "Lost") -> str:
    """A lost duplicate in words."""
    likeness = "" if document.similarity is None else f", similarity {document.similarity:.2f}"
    dropped = f"dropped in version {document.dataset_version} as a duplicate of {document.duplicate_of} ({document.reason}{likeness})"
    return f"{document.place} (document {document.doc_id}): {dropped}, and not kept elsewhere"


def _as_json(query: str, fates: "list[Fate]") -> dict[str, Any]:
    """The fields of the record that counts (the kept one, else the newest), and all records in commit order."""
    kept = [fate for fate in fates if fate.outcome == "kept"]
    decisive = next((fate for fate in kept if fate.retracted_in is None), (kept or fates)[-1])
    return {"query": query, **decisive.as_json(), "records": [fate.as_json() for fate in fates]}


def sentence(fate: "Fate") -> str:
    """One record's fate in words."""
    told = (("document", fate.doc_id), ("from", fate.url), ("under licence", fate.license), ("a replay of", fate.replay_of))
    known = [f"{what} {name}" for what, name in told if name]
    name = f"{fate.topic}/{fate.partition}/{fate.offset}" + (f" ({', '.join(known)})" if known else "")
    return f"{name}, dataset version {fate.dataset_version}: {_outcome(fate)}"


def _outcome(fate: "Fate") -> str:
    if fate.outcome == "kept":
        place = f"kept for {fate.split}: {fate.shard} row {fate.row} position {fate.start}, {counted(fate.length or 0, 'token')}"
        place += f" (now in row {fate.file_row} of {fate.file})" if fate.file != fate.shard else ""
        returned = "" if fate.returned_after is None else f"published again after its retraction at {fate.returned_after}; "
        return f"{place}; {returned}{_holding(fate)}{_models(fate)}"
    if fate.dead_letter is not None:
        return f"dead ({fate.reason}); its dead letter is in topic {fate.dead_letter['topic']} under key {fate.dead_letter['key']}"
    if fate.outcome == "retracted":
        return "a retraction of the document was recorded"
    if fate.outcome in ("duplicate", "rejected"):
        return _dropped(fate)
    return "no record to read at this offset (transaction marker, aborted or compacted away)"


def _dropped(fate: "Fate") -> str:
    if fate.reason == "retracted":
        return "not taken in (retracted): it was published before its retraction, which was read first"
    if fate.outcome == "rejected":
        from pipelines.steps.rules.why import why

        reason = why(fate.reason or "")
        return f"rejected by rule {fate.reason}" + (f": {reason}" if reason else "")
    if fate.similarity is None:
        return f"dropped ({fate.reason}): document {fate.duplicate_of} is kept already"
    return f"dropped as {fate.reason} duplicate of document {fate.duplicate_of} (similarity {fate.similarity:.2f})"


def _holding(fate: "Fate") -> str:
    """Which versions hold it, where a retraction has ended that."""
    if fate.retracted_in is None:
        return ""
    taken_out = f"retracted in version {fate.retracted_in} by {fate.retracted_by}, "
    if fate.dataset_versions is None:
        return f"{taken_out}so that no version holds it; "
    return f"{taken_out}held by versions {fate.dataset_versions['first']} to {fate.dataset_versions['last']}; "


def _models(fate: "Fate") -> str:
    if fate.split == "validation":
        return "held out for validation, no model trained on it"
    if not fate.models:
        return "no model has trained on it" + ("" if fate.retracted_in else " yet")
    heirs = f"; models that started from these: {', '.join(map(str, fate.heirs))}" if fate.heirs else ""
    return "trained into model version" + ("s " if len(fate.models) > 1 else " ") + ", ".join(map(str, fate.models)) + heirs
