"""Headrace's half of benchmarks/pipeline.py, a process of its own: records in memory -> one dataset version on disk, on one core.

Everything is the product's own: decode, normalize, language, quality rules, fingerprint, tokenize, resolve duplicates, pack, write, fsync.
"""

import argparse
import functools
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from inspect import isfunction
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.corpus import keep_to_one_core, num_megabytes, pipeline_parser, read_documents, say
from pipelines.dataset.duplicates import Duplicates
from pipelines.dataset.retractions import Retractions
from pipelines.dataset.writer import VersionPlan, write_version
from pipelines.steps import assess
from pipelines.steps import prepare as steps
from pipelines.tokenizer import BatchTokenizer, load_tokenizer, write_tokenizer
from schemas.arrow import RECORDS
from schemas.manifest import OffsetRange, TokenizerRef
from schemas.settings import Settings
from schemas.settings_pii import PiiSettings
from schemas.settings_quality import RULE_SETS
from schemas.settings_sources import load_settings

TOPIC = "headrace.documents"


class Clock:
    """CPU seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, call: Any) -> Any:
        """The same call, timed."""

        @functools.wraps(call)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] += time.process_time() - start

        return wrapper

    def watch_steps(self) -> None:
        """Time every step that ``prepare`` calls, and what the one among them that is itself made of steps calls."""
        for owner in (steps, assess):
            for name, value in list(vars(owner).items()):
                module = getattr(value, "__module__", None) or ""
                if isfunction(value) and module.startswith("pipelines.") and module not in (steps.__name__, assess.__name__):
                    setattr(owner, name, self.timed(f"{module.rpartition('.')[2]}.{name}", value))
        BatchTokenizer.encode = self.timed("tokenize", BatchTokenizer.encode)  # type: ignore[method-assign]


def records_of(documents: list[dict[str, Any]]) -> pa.Table:
    """The documents as Kafka records of one partition."""
    values = [json.dumps({"id": document["id"], "text": document["text"]}, ensure_ascii=False).encode() for document in documents]
    number = len(values)
    columns = {
        "topic": [TOPIC] * number,
        "partition": [0] * number,
        "offset": range(number),
        "timestamp_ms": [0] * number,
        "is_control": [False] * number,
        "value": values,
        "headers": [[]] * number,
    }
    return pa.table([pa.array(columns.get(field.name, [None] * number), field.type) for field in RECORDS], schema=RECORDS)


def settings_for(root: Path, *, filters: bool) -> Settings:
    """Defaults; the filters are the rule sets that datatrove has too, or none."""
    overrides: dict[str, Any] = {"root": str(root), "packing.sequence_length": 2048, "tokenizer.vocab_size": 16384}
    overrides["quality.rule_sets"] = tuple(name for name in RULE_SETS if name != "headrace") if filters else ()
    overrides |= {
        f"pii.{name}": "off" for name, field in PiiSettings.model_fields.items() if field.default in ("redact", "drop", "count")
    }  # the others do none
    return load_settings("", {}, overrides)


def run(records: pa.Table, settings: Settings, tokenizer: BatchTokenizer, ref: TokenizerRef, clock: Clock) -> dict[str, int]:
    """One dataset version from the records; returns the outcomes."""
    root = Path(settings.root)
    duplicates = Duplicates(settings.dedup)
    duplicates.open(None)
    retractions = Retractions()
    retractions.open(None)
    resolve = clock.timed("resolve", lambda block: retractions.resolve(block, duplicates))

    def resolved() -> Iterator[tuple[pa.Table, pa.Table]]:
        for first in range(0, len(records), settings.ingest.slice_records):
            block = retractions.admit(prepare(records.slice(first, settings.ingest.slice_records), settings, tokenizer))
            yield block, resolve(block)

    prepare = clock.timed("prepare", steps.prepare)
    offsets = {TOPIC: {0: OffsetRange(start=0, end=len(records))}}
    plan = VersionPlan(version=1, attempt=f"{time.time_ns() & 0xFFFFFFFFFFFF:012x}", topic_ids={TOPIC: "A" * 22}, offsets=offsets, tokenizer=ref)
    files = write_version(root, plan, settings, resolved(), duplicates.new_segment, retractions.masks)
    return dict(files.statistics.outcomes)


def tokenizer_in(root: Path, settings: Settings, tokenizer_folder: Path) -> TokenizerRef:
    return write_tokenizer(root, [], settings.tokenizer.model_copy(update={"path": str(tokenizer_folder)}))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    documents = read_documents(args.corpus, number=args.documents, step=args.step)
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(Path(folder), filters=args.filters)
        ref = tokenizer_in(Path(folder), settings, args.tokenizer)
        run(records_of(documents[:1000]), settings, load_tokenizer(Path(folder), ref, settings.tokenizer), ref, Clock())  # compile
        tokenizer = load_tokenizer(Path(folder), ref, settings.tokenizer)
        assert tokenizer.has_engine  # read and probed, as in a worker's second batch; its memory of words is empty
        records = records_of(documents)
        clock = Clock()
        clock.watch_steps()
        start, start_cpu = time.perf_counter(), time.process_time()
        outcomes = run(records, settings, tokenizer, ref, clock)
        wall_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    parts = {name: seconds for name, seconds in clock.seconds.items() if name != "prepare"}
    inside = sum(seconds for name, seconds in parts.items() if name != "resolve")
    parts["prepare, the rest"] = clock.seconds["prepare"] - inside
    parts["pack and write"] = cpu_s - clock.seconds["prepare"] - clock.seconds["resolve"]
    return {
        "documents": len(documents),
        "megabytes": num_megabytes(documents),
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "outcomes": outcomes,
        "parts": parts,
    }


def main() -> None:
    keep_to_one_core()
    say(measure(pipeline_parser().parse_args()))


if __name__ == "__main__":
    pa.set_cpu_count(1)
    main()
