"""Files, folders and standard input as a stream of findings, in a fixed order: paths as given, folders recursively and sorted by name.

Invariant: every file and every record turns up as exactly one finding or one per record; one that cannot be read stops nothing.
Memory is bounded by one record (``max_bytes`` of text; Parquet: PARQUET_ROWS rows), whatever the size of the file.
"""

import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from ops.producing.findings import FIELDS, Failed, Finding, Skipped, TooLarge, content_id, file_id, from_page, from_record, from_text, no_text_field
from ops.producing.warc import read_warc
from pipelines.steps.formats.charset import MAX_DAMAGE, decode_text
from schemas.errors import EnvelopeError

TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".markdown", ".rst"})
HTML_SUFFIXES = frozenset({".html", ".htm", ".xhtml"})
LINES_SUFFIXES = frozenset({".jsonl", ".ndjson"})
PARQUET_SUFFIXES = frozenset({".parquet"})
WARC_SUFFIXES = frozenset({".warc", ".wet"})
COMPRESSED_SUFFIXES = frozenset({".gz", ".zst"})
ALL_SUFFIXES = sorted(TEXT_SUFFIXES | HTML_SUFFIXES | LINES_SUFFIXES | PARQUET_SUFFIXES | WARC_SUFFIXES)
STANDARD_INPUT = "standard input"
PARQUET_ROWS = 256
ESCAPED = 2
"""A JSON line may be this many times as long as the largest record: escapes make it longer than its text."""


class ReadOptions(NamedTuple):
    """How to read."""

    text_field: str = "text"
    """Field of JSON Lines and Parquet records that holds the text."""
    max_bytes: int = 32 * 2**20
    """Text larger than this is not read to its end."""
    max_damage: float = MAX_DAMAGE
    """Largest share of a text's characters that may be undecodable (formats.max_damaged_fraction)."""


def read_paths(paths: Iterable[str], options: ReadOptions, standard_input: BinaryIO) -> Iterator[Finding]:
    """Findings of all paths; ``-`` is standard input, which holds JSON Lines."""
    for path in paths:
        if path == "-":
            yield from _read_lines(STANDARD_INPUT, standard_input, options)
        elif Path(path).is_dir():
            for file in _files_under(Path(path)):
                if _kind(file)[0]:
                    yield from _read_file(file, options)
                else:
                    yield Skipped(file.as_posix(), f"{file.suffix.lower()[:20] or 'no suffix'} file")
        elif (problem := unreadable(path)) is not None:
            yield Failed(path, problem)
        else:
            yield from _read_file(Path(path), options)


def unreadable(path: str) -> str | None:
    """Why nothing can come of a path, as far as its name says it; None if something may."""
    if path == "-" or Path(path).is_dir():
        return None
    if not Path(path).exists():
        return "there is no such file or folder"
    if not _kind(Path(path))[0]:
        return f"files like this cannot be read; known are {', '.join(ALL_SUFFIXES)}, all but .parquet also as .gz and .zst"
    return None


def _files_under(folder: Path) -> Iterator[Path]:
    """Files in the folder and below, sorted; hidden ones and what links lead to are left alone."""
    for parent, folders, files in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def _kind(file: Path) -> tuple[str, str]:
    """(suffix that tells what is inside, suffix of the compression); empty where there is none that is known."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES else ""
    inside = suffixes[-1] if suffixes else ""
    if inside not in ALL_SUFFIXES or (compression and inside in PARQUET_SUFFIXES):
        return "", compression
    return inside, compression


def _read_file(file: Path, options: ReadOptions) -> Iterator[Finding]:
    origin = file.as_posix()
    kind, compression = _kind(file)
    try:
        if kind in PARQUET_SUFFIXES:
            yield from _read_parquet(file, options)
            return
        if kind in WARC_SUFFIXES:
            yield from read_warc(file, compression, options.max_bytes, options.max_damage)
            return
        with file.open("rb") as raw, _decompressed(raw, compression) as stream:
            yield from _READERS[kind](origin, stream, options)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException) as error:
        yield Failed(origin, f"{type(error).__name__}: {error}{_zstd_advice(error)}")


def _zstd_advice(error: Exception) -> str:
    """zstd says only that a frame needs too much memory."""
    if "too much memory" not in str(error):
        return ""
    return "; it was compressed with a window wider than 128 MiB (zstd --long or --ultra): recompress it, `zstd -d --long=31 -c OLD | zstd -o NEW`"


def _decompressed(raw: BinaryIO, compression: str) -> BinaryIO:
    if compression == ".gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if compression == ".zst":
        return io.BufferedReader(pa.CompressedInputStream(raw, "zstd"))  # zstandard's own reader takes a file that is cut off for one that ends
    return raw


def _read_text(origin: str, stream: BinaryIO, options: ReadOptions) -> Iterator[Finding]:
    data = stream.read(options.max_bytes + 1)
    if len(data) > options.max_bytes:
        yield TooLarge(origin, len(data))
        return
    try:
        text = decode_text(data, None, options.max_damage)
    except EnvelopeError:
        yield Failed(origin, "it is in no character set that is known; convert it to UTF-8 first")
        return
    yield from_text(origin, text, file_id(origin), _heading(text))


def _heading(text: str) -> str | None:
    """The first line, if it is a Markdown heading."""
    first = text.lstrip().partition("\n")[0]
    return first.lstrip("#").strip() if first.startswith("#") else None


def _read_html(origin: str, stream: BinaryIO, options: ReadOptions) -> Iterator[Finding]:
    data = stream.read(options.max_bytes + 1)
    if len(data) > options.max_bytes:
        yield TooLarge(origin, len(data))
        return
    try:
        yield from_page(origin, decode_text(data, None, options.max_damage), file_id(origin))
    except EnvelopeError as error:
        yield Failed(origin, str(error))


def _read_lines(origin: str, stream: BinaryIO, options: ReadOptions) -> Iterator[Finding]:
    limit = options.max_bytes * ESCAPED
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) > limit:
            yield TooLarge(f"{origin} line {number}", len(line) + _skip_line(stream, limit))
        elif line.strip():
            yield _read_line(origin, number, line, options.text_field)


def _read_line(origin: str, number: int, line: bytes, text_field: str) -> Finding:
    where = f"{origin} line {number}"
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deep
        return Failed(where, f'it is not JSON: {error}; every line must be an object like {{"text": "…"}}')
    fallback_id = content_id(line.strip()) if origin == STANDARD_INPUT else file_id(origin, number)
    return from_record(where, record, text_field, fallback_id)


def _skip_line(stream: BinaryIO, limit: int) -> int:
    """Read on to the end of the line in pieces; returns how many bytes that were."""
    size = 0
    while piece := stream.readline(limit):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size


def _read_parquet(file: Path, options: ReadOptions) -> Iterator[Finding]:
    origin = file.as_posix()
    with pq.ParquetFile(file) as parquet:
        names = parquet.schema_arrow.names
        if options.text_field not in names:
            yield Failed(origin, no_text_field(options.text_field, names))
            return
        columns = [name for name in names if name in FIELDS or name == options.text_field]
        batches = parquet.iter_batches(batch_size=PARQUET_ROWS, columns=columns)
        records = (record for batch in batches for record in batch.to_pylist())
        for row, record in enumerate(records, start=1):
            yield from_record(f"{origin} row {row}", record, options.text_field, file_id(origin, row))


_READERS: Mapping[str, Callable[[str, BinaryIO, ReadOptions], Iterator[Finding]]] = (
    dict.fromkeys(TEXT_SUFFIXES, _read_text) | dict.fromkeys(HTML_SUFFIXES, _read_html) | dict.fromkeys(LINES_SUFFIXES, _read_lines)
)
