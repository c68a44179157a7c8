"""Going on after a loss: a person names where, and says why; that becomes a version of its own, without documents.

What was lost stays visible for ever: which offsets, what happened, who accepted it and why stand in that version's manifest. So every offset has
an outcome, or lies in a gap that somebody answers for. Nothing is accepted unseen: the person repeats where each partition goes on, as the error
said it, and if the topic has changed since, that is refused. Nothing that can still be read is skipped.

After a cut, or in a topic that was created again, offsets begin anew: two records may have stood at one offset, each in a version of its own.
Cost: a few requests, one small file.
"""

import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.dataset.dataset import Dataset
from pipelines.dataset.writer import ends_of, manifest_without_documents, publish
from pipelines.kafka.planning import advice, find_lost, leader_epochs, told
from pipelines.kafka.topics import topic_ids, topic_names
from schemas.errors import SettingsError
from schemas.lost_offsets import AcceptedLoss, LostOffsets
from schemas.manifest import DatasetManifest, OffsetRange
from schemas.settings import Settings


def accept_loss(settings: Settings, resumed: Mapping[int, int | None], *, by: str, reason: str, now: datetime) -> DatasetManifest:
    """Publish the version that records the loss; reading goes on behind it.

    ``resumed``: of each partition that lost something the offset at which it goes on, None if the partition is no longer there.
    Raises SettingsError if that is not what was lost; DatasetNotFound, TopicMissing, BrokerUnavailable, CommitConflict.
    """
    dataset, topic = Dataset(Path(settings.root).resolve()), topic_names(settings).documents
    found_id, known_id = topic_ids(settings, [topic])[topic], dataset.manifest.topic_ids.get(topic)
    is_recreated = known_id not in (None, found_id)
    before = dataset.next_offsets(topic)
    lost = find_lost(settings, topic, before, dataset.manifest.leader_epochs.get(topic, {}), is_recreated=is_recreated)
    _check(topic, lost, resumed)
    kept = {} if is_recreated else before
    ends = {partition: end for partition, end in {**kept, **resumed}.items() if end is not None}
    accepted = AcceptedLoss(by=by, reason=reason, lost=lost, topic_id_before=known_id if is_recreated else None)
    changes = _changes(dataset.manifest, topic, ends, accepted)
    changes["topic_ids"] = dataset.manifest.topic_ids | {topic: found_id}
    changes["leader_epochs"] = dataset.manifest.leader_epochs | {topic: leader_epochs(settings, topic, ends)}
    manifest = manifest_without_documents(dataset.manifest, secrets.token_hex(6), settings, now, **changes)
    publish(dataset.root, manifest)
    return manifest


def _check(topic: str, lost: list[LostOffsets], resumed: Mapping[int, int | None]) -> None:
    """Refuse to accept what is not lost, or not all of it."""
    if not lost:
        raise SettingsError(f"no records of {topic!r} are lost: ingest can go on where the dataset ends; run it without --accept-loss")
    if {loss.partition: loss.resumed for loss in lost} != dict(resumed):
        raise SettingsError(f"what --accept-loss names is not what is lost: {'; '.join(map(told, lost))}. Nothing was committed. {advice(lost)}")


def _changes(parent: DatasetManifest, topic: str, ends: Mapping[int, int], accepted: AcceptedLoss) -> dict[str, Any]:
    """Where reading goes on, and what was lost before."""
    num_lost = parent.totals.num_lost + sum(loss.num_unread or 0 for loss in accepted.lost)
    return {
        "offsets": ends_of(parent) | {topic: {partition: OffsetRange(start=end, end=end) for partition, end in sorted(ends.items())}},
        "totals": parent.totals.model_copy(update={"num_lost": num_lost}),
        "accepted_loss": accepted,
    }
