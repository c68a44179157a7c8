"""Opening a dataset whose log is long and whose topic has many partitions: from checkpoints, beside reading every manifest.

    python -m benchmarks.log_open [--versions 100000] [--partitions 1000] [--read 1000] [--folder /tmp]

The log is made up: manifests of a real version with other numbers, written as files of their own where a reader looks (the newest, the tail behind
the checkpoints, the last of each checkpoint); the names between them are links to one of these, which nobody reads. Checkpoints are written by the
product's own code. Each opening is a process of its own, which says what it took after its imports: the time until the version, its totals, its
offsets, the shards of a split and the sums of outcomes and languages are there, and what memory it came to hold. Reading every manifest, on a
log of ``--read`` versions, asks for the same. The median of several runs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, versions
from pipelines.dataset.checkpoints import cover, save_checkpoint
from pipelines.dataset.columns import columns_of
from pipelines.dataset.dataset import dataset_log
from pipelines.dataset.names import documents_path, segment_path, shard_path
from schemas.arrow import Outcome, Split
from schemas.manifest import DatasetManifest, FileEntry, OffsetRange, ShardEntry, TokenizerRef, Totals

REPEATS = 5
RECORDS_PER_PARTITION = 3
MAX_LINKS = 30_000
"""To one file; file systems allow 65,000 or fewer."""
TOPIC = "headrace.documents"
OPENING = """
import re, sys, time
from pathlib import Path
from pipelines.dataset.columns import documents_by_language
from pipelines.dataset.dataset import Dataset
from schemas.arrow import Outcome, Split
def memory_mib(name): return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before, start, cpu = memory_mib("VmHWM"), time.perf_counter(), time.process_time()
dataset = Dataset(Path(sys.argv[1]))
if sys.argv[2] == "checkpoints":
    shards = dataset.shard_files(Split.TRAIN)
    languages = documents_by_language(dataset.columns)
else:
    manifests = list(dataset.manifests())
    shards = [entry for manifest in manifests for entry in manifest.shards if entry.split == Split.TRAIN]
    languages = {}
    for manifest in manifests:
        for language, number in manifest.languages.items():
            languages[language] = languages.get(language, 0) + number
offsets = dataset.offsets()
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
assert len(shards) == dataset.version and sum(languages.values()) == dataset.manifest.totals.outcomes[Outcome.KEPT]
assert sum(len(span) for spans in offsets.values() for span in spans.values()) == dataset.manifest.totals.num_records
print(seconds, cpu, memory_mib("VmHWM") - before, memory_mib("VmHWM"))
"""


def manifest(version: int, num_partitions: int) -> DatasetManifest:
    """A version of a trickle: a few records of every partition, one small shard."""
    num_records, attempt = RECORDS_PER_PARTITION * num_partitions, f"{version:012x}"
    start, end = (version - 1) * RECORDS_PER_PARTITION, version * RECORDS_PER_PARTITION
    size: dict[str, Any] = {"rows": num_records, "size_bytes": 40 * num_records, "sha256": f"{version:064x}"}
    shard = ShardEntry(path=shard_path(version, Split.TRAIN, 0, attempt), split=Split.TRAIN, tokens=100, documents=num_records, **size)
    outcomes = dict.fromkeys(Outcome, 0) | {Outcome.KEPT: num_records}
    totals = {outcome: version * number for outcome, number in outcomes.items()}
    return DatasetManifest(
        version=version,
        parent=version - 1,
        created_at=datetime.fromtimestamp(1_800_000_000 + 30 * version, UTC),
        attempt=attempt,
        topic_ids={TOPIC: "A" * 22},
        offsets={TOPIC: {number: OffsetRange(start=start, end=end) for number in range(num_partitions)}},
        record_bytes={TOPIC: dict.fromkeys(range(num_partitions), 4_000)},
        outcomes=outcomes,
        reasons={},
        num_records=num_records,
        num_tokens=100,
        shards=[shard],
        documents=[FileEntry(path=documents_path(version, attempt), **size)],
        dedup_segments=[FileEntry(path=segment_path(version, attempt), **size)],
        tokenizer=TokenizerRef(sha256="0" * 64, path=f"tokenizer/{'0' * 64}", vocab_size=8_192, eos_token_id=0, pad_token_id=1),
        sequence_length=256,
        settings_fingerprint="0" * 64,
        languages={"en": num_records - 1, "zh": 1},
        totals=Totals(num_records=version * num_records, num_tokens=version * 100, num_train_tokens=version * 100, outcomes=totals),
    )


def stand_ins(first: int, last: int, num_partitions: int) -> Iterator[DatasetManifest]:
    """The versions as far as their columns look at them; a thousand times faster to make."""
    template = manifest(first, num_partitions)
    for version in range(first, last + 1):
        attempt = f"{version:012x}"
        files = {"documents": documents_path(version, attempt), "dedup_segments": segment_path(version, attempt)}
        files["shards"] = shard_path(version, Split.TRAIN, 0, attempt)
        lists = {name: [getattr(template, name)[0].model_copy(update={"path": path, "sha256": f"{version:064x}"})] for name, path in files.items()}
        created_at = datetime.fromtimestamp(1_800_000_000 + 30 * version, UTC)
        yield template.model_copy(update={**lists, "version": version, "attempt": attempt, "created_at": created_at})


def write_manifest(root: Path, version: int, num_partitions: int) -> Path:
    """One file of the log."""
    path = dataset_log(root).path(version)
    path.unlink(missing_ok=True)
    path.write_text(manifest(version, num_partitions).model_dump_json(indent=1) + "\n")
    return path


def write_log(root: Path, num_versions: int, num_partitions: int) -> None:
    """All names; contents where a reader of the checkpoints and the tail looks."""
    log, checkpoints = dataset_log(root), cover(num_versions)
    log.folder.mkdir(parents=True)
    common = write_manifest(root, 1, num_partitions)
    for version in range(2, num_versions + 1):
        if version % MAX_LINKS:
            os.link(common, log.path(version))
        else:
            common = write_manifest(root, version, num_partitions)
    read = {covered.last for covered in checkpoints} | set(range(checkpoints[-1].last if checkpoints else 1, num_versions + 1))
    for version in read:
        write_manifest(root, version, num_partitions)
    for covered in checkpoints:
        save_checkpoint(root, log, covered, columns_of(stand_ins(*covered, num_partitions)))


def told(root: Path, way: str, num_versions: int, num_partitions: int) -> None:
    """One line: medians."""
    command = [sys.executable, "-c", OPENING, str(root), way]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(REPEATS)]
    seconds, cpu, grown, peak = (statistics.median(map(float, values)) for values in zip(*runs, strict=True))
    print(
        f"{num_versions:>9,} versions of {num_partitions:,} partitions  {way:<12} {seconds:8.3f} s ({cpu:.3f} s of processor time)  "
        f"{grown:8.1f} MiB more than after imports at the peak, {peak:.1f} MiB with them",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--versions", type=int, default=100_000, help="length of the log")
    parser.add_argument("--partitions", type=int, default=1_000, help="partitions of its topic")
    parser.add_argument("--read", type=int, default=1_000, help="length of the log whose manifests are all read")
    parser.add_argument(
        "--folder", type=Path, help="where the logs go for the time being: 70 bytes per version and partition for those that are read"
    )
    arguments = parser.parse_args()
    print(f"{machine()}; {versions('pyarrow', 'pydantic')}; median of {REPEATS} processes")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        read = Path(name) / "read"
        dataset_log(read).folder.mkdir(parents=True)
        for version in range(1, arguments.read + 1):
            write_manifest(read, version, arguments.partitions)
        told(read, "manifests", arguments.read, arguments.partitions)
        for num_versions in (arguments.versions // 100, arguments.versions // 10, arguments.versions):
            root = Path(name) / str(num_versions)
            write_log(root, num_versions, arguments.partitions)
            told(root, "checkpoints", num_versions, arguments.partitions)


if __name__ == "__main__":
    main()
