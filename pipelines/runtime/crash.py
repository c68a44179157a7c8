"""Named crash points: where the recovery tests kill the process.

SIGKILL ends a process without any of its own code; what it wrote stays in the kernel and reaches the disk. A power cut takes that too: what it
would leave follows from the order of writes and flushes, which tests/unit/test_storage_order.py records and judges.

``HEADRACE_CRASH_AT=name`` kills at the first visit of that point, ``name:3`` at the third; ``stop@name:3`` suspends the process there
(SIGSTOP), so that a test can let another writer overtake it. Without the variable a crash point costs one dictionary look-up.
"""

import os
import signal
from collections import Counter

VARIABLE = "HEADRACE_CRASH_AT"
CRASH_POINTS = (
    "planned",  # ranges are fixed, nothing is written
    "tokenizer_written",  # first version only
    "block_taken",  # in the middle of the job: the first block is packed, nothing is visible
    "shard_written",  # one shard has its final name, others are missing
    "shards_written",
    "documents_written",
    "masks_written",  # the retracted documents' spans, if there are any
    "segment_written",  # every file of the version has its final name
    "topic_checked",  # every file has its name, and the topic is the one that was read
    "dead_letters_acked",  # the next thing is the publication
    "published",  # the version is committed, nobody has been told
    "offsets_published",
    "event_published",
)
"""Every step of the commit protocol (pipelines/ingest/stream.py), in its order."""

COMPACTION_CRASH_POINTS = (
    "base_written",  # the file has its final name, no manifest lists it
    "base_published",
)
"""Every step of a compaction of the duplicate index (pipelines/dataset/compaction.py), in its order."""

MERGE_CRASH_POINTS = (
    "merge_begun",  # nothing is written
    "merged_shard_written",  # one file has its final name; no manifest lists it, and it has not been compared yet
    "merge_written",
    "merge_published",
)
"""Every step of a merge of small shards (pipelines/dataset/merging.py), in order."""

CHECKPOINT_CRASH_POINTS = (
    "checkpoint_written",  # and those that it stands for are there too
    "checkpoint_removed",  # one of those that it stands for
)
"""Every step of writing checkpoints of the log (pipelines/dataset/checkpoints.py), in its order: the log alone says everything at any time."""

SWITCH_CRASH_POINTS = (
    "tokenizer_written",
    "block_taken",
    "shard_written",
    "shards_written",
    "documents_written",
    "segment_written",
    "switch_written",  # every file of the new dataset has its final name, no manifest lists it
    "published",
)
"""Every step of a switch to another tokenizer (pipelines/dataset/switch.py), in its order."""

_visits: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Die or stop here if the environment says so."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    _visits[name] += 1
    if f"{name}:{_visits[name]}" in (wanted, f"{wanted}:1"):
        os.kill(os.getpid(), signal.SIGKILL)
    if f"stop@{name}:{_visits[name]}" in (wanted, f"{wanted}:1"):
        os.kill(os.getpid(), signal.SIGSTOP)
