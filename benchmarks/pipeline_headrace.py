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
from contextlib import contextmanager
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.corpus import keep_to_one_core, num_megabytes, pipeline_parser, read_documents, say
from pipelines.dataset.duplicates import Duplicates
from pipelines.dataset.retractions.retractions import Retractions
from pipelines.dataset.writer import ResolvedBlock, VersionPlan, write_version
from pipelines.steps import assess
from pipelines.steps import prepare as steps
from pipelines.tokenizers.tokenizer import BatchTokenizer, load_tokenizer, write_tokenizer
from schemas.arrow import RECORDS
from schemas.manifest import OffsetRange, TokenizerRef
from schemas.settings import Settings
from schemas.settings_pii import PiiSettings
from schemas.settings_quality import RULE_SETS
from schemas.settings_sources import load_settings

TOPIC = "headrace.documents"


STAGES = {
    "decode": "decode",
    "normalize": "normalize",
    "detect_languages": "language",
    "judge": "rules",
    "redact": "PII",
    "fingerprint_texts": "fingerprint",
    "content_hashes": "fingerprint",
    "encode": "tokenize",
    "resolve": "resolve",
}
"""What the table calls the steps that ``prepare`` calls; what it calls besides belongs to the columns."""
COLUMNS, WRITE = "columns", "write"


class Clock:
    """CPU and wall seconds by stage."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = defaultdict(float)
        self.wall_s: dict[str, float] = defaultdict(float)

    def timed(self, name: str, call: Any) -> Any:
        """The same call, timed."""

        @functools.wraps(call)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start, start_cpu = time.perf_counter(), time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.cpu_s[name] += time.process_time() - start_cpu
                self.wall_s[name] += time.perf_counter() - start

        return wrapper

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time every step that ``prepare`` calls, and what the one among them that is itself made of steps calls."""
        found = [(owner, name) for owner in (steps, assess, BatchTokenizer) for name in vars(owner) if name in STAGES]
        plain = [vars(owner)[name] for owner, name in found]
        for (owner, name), call in zip(found, plain, strict=True):
            setattr(owner, name, self.timed(STAGES[name], call))
        try:
            yield
        finally:
            for (owner, name), call in zip(found, plain, strict=True):
                setattr(owner, name, call)

    def parts(self, cpu_s: float) -> dict[str, float]:
        """CPU seconds by stage, which together are all there were."""
        parts = {name: self.cpu_s[name] for name in dict.fromkeys(STAGES.values())}
        inside = sum(seconds for name, seconds in parts.items() if name != "resolve")
        parts[COLUMNS] = self.cpu_s["prepare"] - inside
        parts[WRITE] = cpu_s - self.cpu_s["prepare"] - self.cpu_s["resolve"]
        return parts


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


def settings_for(root: Path, rules: str, *, pii: bool) -> Settings:
    """Defaults but for the rule sets, which are Headrace's own, those that datatrove has too, or none; and PII, which the others leave in."""
    sets = {"own": ("headrace",), "peers": tuple(name for name in RULE_SETS if name != "headrace"), "none": ()}
    overrides: dict[str, Any] = {"root": str(root), "packing.sequence_length": 2048, "tokenizer.vocab_size": 16384, "quality.rule_sets": sets[rules]}
    if not pii:
        actions = [name for name, field in PiiSettings.model_fields.items() if field.default in ("redact", "drop", "count")]
        overrides |= {f"pii.{name}": "off" for name in actions}
    return load_settings("", {}, overrides)


def run(records: pa.Table, settings: Settings, tokenizer: BatchTokenizer, ref: TokenizerRef, clock: Clock) -> dict[str, int]:
    """One dataset version from the records; returns the outcomes."""
    root = Path(settings.root)
    duplicates = Duplicates(settings.dedup)
    duplicates.open(None)
    retractions = Retractions()
    retractions.open(None)
    resolve = clock.timed(STAGES["resolve"], lambda block: retractions.resolve(block, duplicates))

    def resolved() -> Iterator[ResolvedBlock]:
        for first in range(0, len(records), settings.ingest.slice_records):
            block = retractions.admit(prepare(records.slice(first, settings.ingest.slice_records), settings, tokenizer))
            yield ResolvedBlock(block, resolve(block))

    prepare = clock.timed("prepare", steps.prepare)
    offsets = {TOPIC: {0: OffsetRange(start=0, end=len(records))}}
    plan = VersionPlan(version=1, attempt=f"{time.time_ns() & 0xFFFFFFFFFFFF:012x}", topic_ids={TOPIC: "A" * 22}, offsets=offsets, tokenizer=ref)
    files = write_version(root, plan, settings, resolved(), duplicates.new_segment, retractions.masks)
    return {str(outcome): number for outcome, number in files.statistics.finish(datetime.now(UTC)).total.outcomes.items()}


def tokenizer_in(root: Path, settings: Settings, tokenizer_folder: Path) -> TokenizerRef:
    return write_tokenizer(root, [], settings.tokenizer.model_copy(update={"path": str(tokenizer_folder)}))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The run with the median CPU time, each in a folder of its own."""
    documents = read_documents(args.corpus, number=args.documents, step=args.step)
    records = records_of(documents)
    once(records.slice(0, len(records) // 4), args)  # compiles
    results = sorted((once(records, args) for _ in range(args.repeats)), key=itemgetter("cpu_s"))
    about = {"documents": len(documents), "megabytes": num_megabytes(documents), "cpu_range_s": [results[0]["cpu_s"], results[-1]["cpu_s"]]}
    return about | results[(len(results) - 1) // 2]


def once(records: pa.Table, args: argparse.Namespace) -> dict[str, Any]:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(Path(folder), args.rules, pii=args.pii)
        ref = tokenizer_in(Path(folder), settings, args.tokenizer)
        tokenizer = load_tokenizer(Path(folder), ref, settings.tokenizer)
        assert tokenizer.has_engine  # read and probed, as in a worker's second batch; its memory of words is empty
        with clock.watching():
            start, start_cpu = time.perf_counter(), time.process_time()
            outcomes = run(records, settings, tokenizer, ref, clock)
            wall_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    return {"wall_s": wall_s, "cpu_s": cpu_s, "outcomes": outcomes, "parts": clock.parts(cpu_s), "tokenize_wall_s": clock.wall_s["tokenize"]}


def main() -> None:
    keep_to_one_core()
    parser = pipeline_parser()
    parser.add_argument("--rules", choices=["own", "peers", "none"], default="own")
    parser.add_argument("--pii", action="store_true", help="redact personal data")
    parser.add_argument("--repeats", type=int, default=3)
    say(measure(parser.parse_args()))


if __name__ == "__main__":
    pa.set_cpu_count(1)
    main()
