"""Shards: kept documents packed into rows of S token ids, one Arrow IPC file with one record batch each.

Documents in commit order, each followed by the end-of-text token, are concatenated and chopped into rows of S; a document runs on
over row ends, never over shard ends, so only the last row of a shard holds padding: at most S - 1 positions of up to
``shard_rows`` x S. The bytes are a pure function of the token ids (no times, no names inside), so that a batch that is run again
after a crash gives the same SHA-256, and the bytes of a shard can be rebuilt from its rows in a merged file (dataset/merging.py).
Writing holds one shard in memory; reading maps the file and copies nothing.
Source: https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format
"""

import errno
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dataset.packing import Packing, Spans, spans_of, starts_of
from pipelines.storage.durable import durable_file, file_entry
from pipelines.storage.store import local
from schemas.arrow import Split, shard, token_type
from schemas.errors import DatasetError, ShardCorrupt
from schemas.manifest import FileEntry, ShardEntry, TokenizerRef

Tokens = npt.NDArray[np.unsignedinteger[Any]]
"""Token ids: uint16 up to a vocabulary of 65,536, else uint32."""
Rows = npt.NDArray[np.int64]
"""Numbers of rows, ascending."""


def with_end_of_text(tokens: pa.LargeListArray, rows: Rows, eos_token_id: int) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """Concatenate the documents of these rows, each followed by the end-of-text token.

    Returns the flat token ids and the (n,) lengths with the end-of-text token counted.
    """
    flat, offsets = tokens.values.to_numpy(), tokens.offsets.to_numpy()
    lengths = offsets[rows + 1] - offsets[rows] + 1
    ended: Tokens = np.empty(int(lengths.sum()), flat.dtype)
    _copy_ended(flat, offsets, rows, eos_token_id, ended)
    return ended, lengths


@numba.njit(cache=True, nogil=True)
def _copy_ended(flat, offsets, rows, eos_token_id, out):  # type: ignore[no-untyped-def]
    place = 0
    for row in rows:
        for index in range(offsets[row], offsets[row + 1]):
            out[place] = flat[index]
            place += 1
        out[place] = eos_token_id
        place += 1


class ShardWriter:
    """Writes the kept documents of one split of one version as shards (dataset/packing.py). ``path_of(number)`` names the files."""

    def __init__(
        self,
        root: Path,
        split: Split,
        tokenizer: TokenizerRef,
        *,
        sequence_length: int,
        shard_rows: int,
        path_of: Callable[[int], str],
    ) -> None:
        self.root = root
        self.split = split
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.entries: list[ShardEntry] = []
        self._packing = Packing(sequence_length, shard_rows)
        self._path_of = path_of
        self._pieces: list[Tokens] = []
        self._starts: list[npt.NDArray[np.int64]] = []
        self._num_tokens = 0

    def add(self, tokens: pa.LargeListArray, rows: Rows) -> Spans:
        """Append the documents of these rows (token ids without the end-of-text token, none null) and say where they will stand."""
        flat, lengths = with_end_of_text(tokens, rows, self.tokenizer.eos_token_id)
        ends, runs = np.cumsum(lengths), self._packing.place(lengths)
        starts = starts_of(runs, lengths)
        for run in runs:
            if run.shard > len(self.entries):
                self._write_shard()
            self._append(flat[ends[run.first] - lengths[run.first] : ends[run.stop - 1]], starts[run.first : run.stop])
        return spans_of(runs, lengths, self.sequence_length, self._path_of)

    def finish(self) -> list[ShardEntry]:
        """Write the last shard; returns the entries of all of them, none if no document was added."""
        if self._num_tokens:
            self._write_shard()
        return self.entries

    def _append(self, flat: Tokens, starts: npt.NDArray[np.int64]) -> None:
        self._pieces.append(flat)
        self._starts.append(starts)
        self._num_tokens += len(flat)

    def _write_shard(self) -> None:
        starts = np.concatenate(self._starts)
        batch = pack(self._pieces, starts, self.sequence_length, self.tokenizer)
        entry = write_shard(self.root, self._path_of(len(self.entries)), batch)
        self.entries.append(ShardEntry(**entry.model_dump(), split=self.split, tokens=self._num_tokens, documents=len(starts)))
        self._pieces, self._starts, self._num_tokens = [], [], 0


def pack(pieces: Sequence[Tokens], starts: npt.NDArray[np.int64], sequence_length: int, tokenizer: TokenizerRef) -> pa.RecordBatch:
    """Chop a run of tokens, given in pieces, into rows of S, padding the last; ``starts`` are the documents' positions in the run, ascending."""
    num_tokens = sum(map(len, pieces))
    num_rows = -(-num_tokens // sequence_length)
    rows = np.empty(num_rows * sequence_length, dtype=token_type(tokenizer.vocab_size).to_pandas_dtype())
    np.concatenate(pieces, out=rows[:num_tokens])
    rows[num_tokens:] = tokenizer.pad_token_id
    row, position = np.divmod(starts, sequence_length)
    offsets = np.searchsorted(row, np.arange(num_rows + 1)).astype(np.int32)
    return _batch(rows, offsets, position.astype(np.uint32), shard(tokenizer.vocab_size, sequence_length))


def _batch(rows: Tokens, offsets: npt.NDArray[np.int32], positions: npt.NDArray[np.uint32], schema: pa.Schema) -> pa.RecordBatch:
    """Flat rows; documents of row i begin at ``positions[offsets[i]:offsets[i + 1]]`` of it."""
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(rows), type=schema.field("tokens").type),
        pa.ListArray.from_arrays(offsets, pa.array(positions), type=schema.field("starts").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def joined(parts: Iterable[pa.RecordBatch], num_rows: int) -> pa.RecordBatch:
    """The rows of several shards, or of parts of shards, as one shard. Takes memory for the result and for one part at a time."""
    schema, rows, at = pa.schema([]), np.empty(0, np.uint16), 0
    lengths, positions = [], []
    for part in parts:
        found = token_rows(part)
        if not at:
            schema, rows = part.schema, np.empty((num_rows, found.shape[1]), found.dtype)
        rows[at : at + len(found)] = found
        at += len(found)
        lengths.append(part.column("starts").value_lengths().to_numpy())
        positions.append(part.column("starts").flatten().to_numpy().copy())
    assert at == num_rows
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int32)
    return _batch(rows.reshape(-1), offsets, np.concatenate(positions), schema)


def write_shard(root: Path, path: str, batch: pa.RecordBatch) -> FileEntry:
    """Write a shard, durably."""
    with durable_file(root / path) as file:
        _write(file, batch)
    return file_entry(root, root / path, batch.num_rows)


def shard_sha256(rows: pa.RecordBatch) -> str:
    """SHA-256 (hex) of the file that a shard of exactly these rows has. The rows may be a part of a larger file."""
    sink = pa.BufferOutputStream()
    _write(sink, joined([rows], rows.num_rows))
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _write(file: Any, batch: pa.RecordBatch) -> None:
    with pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


OUT_OF_MAPS = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def read_batch(path: Path) -> pa.RecordBatch:
    """The record batch of a shard, memory-mapped.

    Raises ShardCorrupt if the file is missing or is no shard, DatasetError if the system gives this process no more maps or files.
    """
    try:
        return _only_batch(path, pa.memory_map(str(local(path))))
    except OSError as error:
        raise unreadable(path, error) from error


def _only_batch(path: Path, source: pa.NativeFile) -> pa.RecordBatch:
    try:
        reader = pa.ipc.open_file(source)
        if reader.num_record_batches != 1:
            raise ShardCorrupt(f"{path} has {reader.num_record_batches} record batches, a shard has one; restore the file from a copy")
        return reader.get_batch(0)
    except pa.ArrowInvalid as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError | pa.ArrowInvalid) -> DatasetError:
    """The error to raise: the file is damaged, or the process has reached a limit of the system."""
    if isinstance(error, OSError) and error.errno in OUT_OF_MAPS:
        return DatasetError(
            f"{path} cannot be mapped ({error}): this process has as many maps or open files as the system allows; the file itself may be undamaged; "
            "raise vm.max_map_count (sysctl) and the limit on open files (ulimit -n), or read in fewer parts at a time"
        )
    return ShardCorrupt(f"{path} is missing or not a shard ({error}); restore the file from a copy")


def parse_batch(path: Path, data: bytes) -> pa.RecordBatch:
    """The record batch of a shard whose bytes were read. Raises ShardCorrupt if it is no shard."""
    return _only_batch(path, pa.BufferReader(data))


def open_shard(path: Path) -> Tokens:
    """Token ids of a shard as a read-only (rows, S) view of the mapped file; nothing is copied."""
    return token_rows(read_batch(path))


def token_rows(batch: pa.RecordBatch) -> Tokens:
    """Token ids of a shard, or of a part of one, as a (rows, S) view; nothing is copied."""
    tokens = batch.column("tokens")
    view: Tokens = tokens.flatten().to_numpy(zero_copy_only=True).reshape(len(tokens), tokens.type.list_size)
    return view
