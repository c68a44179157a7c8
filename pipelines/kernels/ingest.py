"""The compiled kernels of an ingest, made ready once per machine instead of once per process.

Numba keeps what it has compiled on disk, but processes that start together and find nothing there all compile: half a minute of a core
each, and minutes for eight workers on two cores. So the first one compiles under a lock, with a sample that passes through every kernel,
and the others wait and load. Where it has been done, asking costs a look at the sources' times (1 ms), once per process.
"""

import fcntl
import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa
import pyarrow.ipc

from pipelines.dataset.shards import with_end_of_text
from pipelines.dataset.writer import kept_rows
from pipelines.dedup.base import write_base
from pipelines.dedup.opening import kept_parts
from pipelines.dedup.paragraphs import distinct_paragraphs, remove_paragraphs
from pipelines.dedup.resolve import Resolver
from pipelines.steps.prepare import prepare
from pipelines.tokenizers.tokenizer import load_tokenizer, write_tokenizer
from schemas.arrow import RECORDS
from schemas.settings import Settings
from schemas.settings_data import TokenizerSettings
from schemas.settings_quality import QualitySettings

logger = logging.getLogger(__name__)
PACKAGE = Path(__file__).parents[1]
ALL_SETS = ("headrace", "gopher_quality", "gopher_repetition", "c4", "fineweb")
SAMPLE = (
    "The old mill stands by the river, and its wheel turns slowly whenever the water comes down from the hills.",
    "水从山上流下来，推动石磨转动；人们用它把谷物磨成面粉，这是很久以前的事情。",
    "Write to miller@example.com or call +49 30 1234567 before noon; the cafÃ© is open \u2014 until 5\u00a0pm.\n\n- wheel\n- stone\n",
)


@cache
def ensure_compiled() -> None:
    """Return when this machine's kernels are on disk; compiles them if no other process does."""
    ready = _marker()
    if ready.exists():
        return
    with _locked(ready.with_suffix(".lock")):
        if not ready.exists():
            logger.warning("compiling the kernels of the pipeline: once per machine and release, about a minute of one core")
            compile_all()
            ready.touch()


def compile_all() -> None:
    """Send the sample through every kernel of an ingest."""
    settings = Settings(quality=QualitySettings(rule_sets=ALL_SETS))
    with tempfile.TemporaryDirectory() as folder:
        ref = write_tokenizer(Path(folder), SAMPLE, TokenizerSettings(vocab_size=300))
        tokenizer = load_tokenizer(Path(folder), ref)
        for chosen in (settings, Settings()):
            block = prepare(sample_records(), chosen, tokenizer)
        _find_duplicates(block, settings, Path(folder))
    with_end_of_text(block["tokens"].chunk(0), np.arange(len(block)), ref.eos_token_id)
    texts = pa.array(SAMPLE, pa.large_string())
    known = distinct_paragraphs(texts, 1).flatten().to_numpy()
    remove_paragraphs(texts, known, 1)


def _find_duplicates(block: pa.Table, settings: Settings, folder: Path) -> None:
    """As for the first version, for the one after it, which knows the first one's documents from a segment, and for one after a compaction."""
    path, base = folder / "segment.arrow", folder / "base"
    first = Resolver(settings.dedup, [])
    first.resolve(kept_rows(block))
    segment = first.new_segment()
    with pyarrow.ipc.new_file(str(path), segment.schema) as writer:
        writer.write_table(segment)
    Resolver(settings.dedup, [path]).resolve(kept_rows(block))
    with base.open("w+b") as file:
        write_base(file, kept_parts(None, [path]), settings.dedup.max_hamming)
    Resolver(settings.dedup, [], base=base).resolve(kept_rows(block))


def sample_records() -> pa.Table:
    """The sample as Kafka records."""
    number = len(SAMPLE)
    columns = {
        "topic": ["sample"] * number,
        "partition": [0] * number,
        "offset": list(range(number)),
        "is_control": [False] * number,
        "value": [json.dumps({"text": text * 3}).encode() for text in SAMPLE],
    }
    return pa.table([pa.array(columns.get(field.name, [None] * number), field.type) for field in RECORDS], schema=RECORDS)


def _marker() -> Path:
    """A file that is there when these sources have been compiled by this Numba for this Python."""
    stamps = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(PACKAGE.rglob("*.py"))]
    digest = hashlib.sha256(repr((numba.__version__, sys.version, stamps)).encode()).hexdigest()[:16]
    return _cache_folder() / f"kernels-{digest}.ready"


def _cache_folder() -> Path:
    """Where Numba writes too: beside the sources, or where the environment says, or the user's cache if the sources are read-only."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    folder = Path(named) if named else PACKAGE / "__pycache__"
    if not named and not os.access(PACKAGE, os.W_OK):
        folder = Path.home() / ".cache" / "headrace"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the kernel lets go of the lock when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
