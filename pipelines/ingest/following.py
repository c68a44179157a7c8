"""When ``--follow`` makes the next version: as soon as enough has come, or the first of it has waited long enough.

A trickle would make a version, with its shards and its manifest, of every few records: so one begins at the earliest a minimum interval after the
one before it began. What is behind does not wait: the next version begins at once where one left records that it had no room for.
The first version waits for more than the others: its documents train the tokenizer that the dataset keeps for good. Unless
``tokenizer.max_wait_s`` bounds that wait, it lasts until there is text enough, or a batch can hold no more.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from pipelines.ingest.bootstrap import check_usable
from pipelines.ingest.isolation.poison import sizes
from pipelines.ingest.progress import Progress
from pipelines.ingest.stream import Abandoned, Stream
from pipelines.kafka.reading import read_slices, slices
from pipelines.kafka.transactions import HoldWatch, told
from schemas.counting import counted
from schemas.errors import BlobsUnavailable, BrokerUnavailable, NotEnoughText
from schemas.manifest import DatasetManifest, OffsetRange
from schemas.settings import Settings

MAX_BACKOFF_S = 30.0
MAX_REMEMBERED = 100
PROBE_RECORDS = 1_000
"""Most offsets of a slice when the bytes that wait are counted."""
LOOK_AGAIN_AT = 1.1
HOLDS_EVERY_S = 30.0
"""Seconds between two looks for open transactions that hold records back."""
_log = logging.getLogger(__name__)


class Tempo:
    """How long to wait: a function of what waits and the time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen_at: float | None = None
        """Time at which the records that wait now were first seen."""
        self._not_before = -math.inf
        """Time before which no version begins."""

    def wait_s(self, num_waiting: int, now: float, *, has_text: Callable[[], bool] | None) -> float:
        """Seconds until the next look; 0 if a version is due. ``has_text`` tells, for a first version, whether enough is there to train on."""
        ingest, tokenizer = self._settings.ingest, self._settings.tokenizer
        if num_waiting == 0:
            self._seen_at = None
            return ingest.follow_interval_s
        if self._seen_at is None:
            self._seen_at = now
        waited_s = now - self._seen_at
        left_s = ingest.max_wait_s - waited_s if num_waiting < min(ingest.min_batch_records, ingest.max_batch_records) else 0.0
        if has_text is not None and num_waiting < ingest.max_batch_records and not self.is_tired(now) and not has_text():
            left_s = max(left_s, tokenizer.max_wait_s - waited_s if tokenizer.max_wait_s else math.inf)
        left_s = max(left_s, self._not_before - now)
        return max(0.0, min(left_s, ingest.follow_interval_s))

    def is_tired(self, now: float) -> bool:
        """Whether a first version has waited for text as long as it may."""
        max_wait_s = self._settings.tokenizer.max_wait_s
        return max_wait_s > 0 and self._seen_at is not None and now - self._seen_at >= max_wait_s

    def taken(self, began_at: float, num_left: int) -> None:
        """A version that began at this time took in what waited, but for so many."""
        self._seen_at = None
        self._not_before = -math.inf if num_left else began_at + self._settings.ingest.min_commit_interval_s


class Follower:
    """Makes a stream's versions when they are due."""

    def __init__(self, stream: Stream, settings: Settings, stop: threading.Event, progress: Progress | None = None) -> None:
        self._stream = stream
        self._progress = progress or Progress()
        self._settings = settings
        self._stop = stop
        self._tempo = Tempo(settings)
        self._holds = HoldWatch(settings, stream.topic, HOLDS_EVERY_S)
        self._is_prepared = False
        self._is_following = False
        self._enough_from = 0
        """Fewer records than this hold too little text."""

    def turn(self) -> DatasetManifest | None:
        """Commit a version if one is due, else wait a little."""
        self._prepare()
        self._stream.compact_if_due()
        waiting = self._stream.available()
        self._stream.metrics.not_ready = None
        self._follow()
        num_waiting = sum(len(span) for span in waiting.values())
        began_at = time.monotonic()
        for held in self._holds.look(began_at):
            self._progress.waiting(f"{told(held)}; they are ingested when it ends")
        wait_s = self._tempo.wait_s(num_waiting, began_at, has_text=self._has_text(waiting))
        if wait_s > 0:
            self._stop.wait(wait_s)
            return None
        try:
            manifest = self._stream.commit_next(with_little_text=self._tempo.is_tired(began_at))
        except NotEnoughText:
            self._enough_from = math.ceil(num_waiting * LOOK_AGAIN_AT)
            raise
        self._tempo.taken(began_at, num_waiting - (manifest.num_records if manifest else 0))
        return manifest

    def _prepare(self) -> None:
        if not self._is_prepared:
            self._stream.create_topic_of_new_dataset()
            self._stream.announce()
            self._is_prepared = True

    def _follow(self) -> None:
        """Say that the work is taken up, but refuse first what would be refused when documents come. Raises SettingsError, TokenizerMismatch."""
        if not self._is_following:
            dataset = self._stream.dataset()
            check_usable(dataset.manifest if dataset else None, self._settings)
            self._progress.following(self._stream.topic)
            self._is_following = True

    def _has_text(self, waiting: Mapping[int, OffsetRange]) -> Callable[[], bool] | None:
        """None unless the next version trains a tokenizer."""
        if self._settings.tokenizer.path or self._stream.dataset() is not None:
            return None
        return lambda: self._has_enough(waiting)

    def _has_enough(self, waiting: Mapping[int, OffsetRange]) -> bool:
        """An estimate from the sizes of the records. If it is too small, it is made again when more records have arrived."""
        enough, num_waiting = self._settings.tokenizer.min_training_bytes, sum(len(span) for span in waiting.values())
        if num_waiting < self._enough_from:
            return False
        found = count_bytes(self._stream.topic, waiting, self._settings, enough)
        if found >= enough:
            return True
        if not self._enough_from:  # only once, because the number grows with each document
            self._progress.waiting(
                f"for more documents: the topic holds {counted(num_waiting, 'record')} with {found:,} bytes, but a new dataset trains its tokenizer "
                f"on {enough:,} bytes of text or more (tokenizer.min_training_bytes). Nothing is lost: what is there stays in the topic. "
                "To begin with these, set tokenizer.min_training_bytes=0"
            )
        self._enough_from = num_waiting + 1
        return False


def count_bytes(topic: str, waiting: Mapping[int, OffsetRange], settings: Settings, enough: int) -> int:
    """Bytes of keys and values of the records that wait; stops after the first block with which the sum reaches ``enough``."""
    found = 0
    for block in read_slices(slices(topic, waiting, PROBE_RECORDS), settings):
        found += int(sizes(block).to_numpy().sum())
        if found >= enough:
            break
    return found


def ingest_follow(settings: Settings, stop: threading.Event, progress: Progress | None = None) -> list[DatasetManifest]:
    """Take in what comes until ``stop`` is set; returns the last versions that were committed, MAX_REMEMBERED at most.

    Waits for a topic, a broker or a folder of documents that is not there yet. Whatever else goes wrong ends it, CommitConflict included:
    two followers of one dataset are a mistake that somebody should hear of.
    """
    progress = progress or Progress()
    manifests: deque[DatasetManifest] = deque(maxlen=MAX_REMEMBERED)
    backoff_s = settings.ingest.follow_interval_s
    with Stream(settings, progress, stop, in_background=True) as stream:
        follower = Follower(stream, settings, stop, progress)
        while not stop.is_set():
            try:
                manifest = follower.turn()
                backoff_s = settings.ingest.follow_interval_s
            except (BrokerUnavailable, BlobsUnavailable) as error:
                stream.metrics.not_ready = str(error)
                progress.waiting(str(error))
                stop.wait(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            except NotEnoughText as error:
                progress.waiting(str(error))
            except Abandoned as error:
                _log.info("%s", error)
            else:
                manifests += [manifest] if manifest else []
    return list(manifests)
