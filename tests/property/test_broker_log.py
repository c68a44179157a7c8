"""The partition log under random appends, rolls, deletions and crashes: after recovery it serves exactly what was acknowledged."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kafka.record import MemoryRecords

from ops.broker.batch import check_produced, read_header
from ops.broker.codes import ProtocolError
from ops.broker.log import PartitionLog
from tests.contract.wire import batch

SEGMENT_BYTES = 600
BASE_MS = 1_700_000_000_000


def records_of(log: PartitionLog, max_bytes: int = 10**6) -> list[tuple[int, bytes]]:
    """Everything that a consumer reading from the start would get."""
    found: list[tuple[int, bytes]] = []
    offset = log.start_offset
    while chunk := log.read(offset, max_bytes, at_least_one=True):
        batches = MemoryRecords(chunk)
        while (part := batches.next_batch()) is not None:
            found += [(record.offset, bytes(record.value)) for record in part if record.offset >= offset]
        offset = found[-1][0] + 1
    return found


class LogMachine(RuleBasedStateMachine):
    """The model is a list of acknowledged values; its index is the offset."""

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.log = PartitionLog(Path(self.folder.name) / "0")
        self.values: list[bytes] = []
        self.times: list[int] = []
        self.start = 0

    @rule(sizes=st.lists(st.integers(0, 120), min_size=1, max_size=4), at_ms=st.integers(0, 50), codec=st.sampled_from([0, 1]))
    def append(self, sizes: list[int], at_ms: int, codec: int) -> None:
        values = [bytes([len(self.values) % 251]) * size for size in sizes]
        sent = batch(values, timestamps=[BASE_MS + at_ms] * len(values), codec=codec)
        assert self.log.append(sent, check_produced(sent, 9), SEGMENT_BYTES) == len(self.values)
        self.values += values
        self.times += [BASE_MS + at_ms] * len(values)

    @rule(share=st.floats(0, 1))
    def delete_records(self, share: float) -> None:
        target = int(share * len(self.values))
        self.start = max(self.start, target)
        assert self.log.delete_before(target) == self.start

    @rule(max_bytes=st.integers(0, 2_000))
    def retain(self, max_bytes: int) -> None:
        self.log.apply_retention(None, max_bytes)
        assert self.start <= self.log.start_offset <= len(self.values)
        self.start = self.log.start_offset

    @rule(torn=st.binary(max_size=100))
    def crash(self, torn: bytes) -> None:
        """A SIGKILL in the middle of the next write: the log object is left as it is, the file has a piece of a batch at its end."""
        last = sorted((Path(self.folder.name) / "0").glob("*.log"))[-1]
        piece = batch([b"never acknowledged" * 20])[: len(torn) * 3]
        with last.open("ab") as file:
            file.write(piece + torn if len(piece) < 61 else piece)
        self.log.close()
        self.log = PartitionLog(Path(self.folder.name) / "0")

    @rule()
    def restart(self) -> None:
        self.log.close()
        self.log = PartitionLog(Path(self.folder.name) / "0")

    @precondition(lambda self: self.values)
    @rule(offset=st.integers(0, 200), max_bytes=st.integers(0, 1_500))
    def read_anywhere(self, offset: int, max_bytes: int) -> None:
        if not self.start <= offset <= len(self.values):
            try:
                self.log.read(offset, max_bytes, at_least_one=True)
            except ProtocolError:
                return
            raise AssertionError(f"offset {offset} was served")
        data = self.log.read(offset, max_bytes, at_least_one=False)
        assert len(data) <= max_bytes
        if offset < len(self.values):
            first = self.log.read(offset, max_bytes, at_least_one=True)
            header = read_header(first)
            assert header.base_offset <= offset <= header.base_offset + header.last_offset_delta

    @precondition(lambda self: self.values)
    @rule(at_ms=st.integers(0, 51))
    def search_by_time(self, at_ms: int) -> None:
        from ops.broker.list_offsets import find_offset

        expected = next((offset for offset in range(self.start, len(self.values)) if self.times[offset] >= BASE_MS + at_ms), -1)
        assert find_offset(self.log, BASE_MS + at_ms).offset == expected

    @invariant()
    def serves_exactly_what_was_acknowledged(self) -> None:
        if hasattr(self, "log"):
            assert self.log.next_offset == len(self.values)
            assert self.log.start_offset == self.start
            assert records_of(self.log) == [(offset, self.values[offset]) for offset in range(self.start, len(self.values))]

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.log.close()
            self.folder.cleanup()


LogMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
test_the_log_serves_exactly_what_was_acknowledged = LogMachine.TestCase


@given(cut=st.integers(0, 10_000), flip=st.integers(0, 10_000), spoil=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_damaged_tail_is_cut_at_the_last_whole_batch(cut: int, flip: int, spoil: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = PartitionLog(Path(folder) / "0")
        sizes = []
        for index in range(6):
            sent = batch([bytes([index]) * 50, b"x"])
            log.append(sent, check_produced(sent, 9), 10**6)
            sizes.append(len(sent))
        log.close()
        path = Path(folder) / "0" / f"{0:020d}.log"
        data = bytearray(path.read_bytes())
        cut = cut % len(data)
        whole = next(index for index in range(6) if sum(sizes[: index + 1]) > cut)
        if spoil and 21 < flip % len(data) < cut:
            at = flip % len(data)
            data[at] ^= 0x10
            spoiled = next(index for index in range(6) if sum(sizes[: index + 1]) > at)
            whole = min(whole, spoiled)
            if (at - sum(sizes[:spoiled])) in (*range(0, 16),):
                return
        path.write_bytes(data[:cut])
        log = PartitionLog(Path(folder) / "0")
        assert log.next_offset == 2 * whole
        assert [offset for offset, _ in records_of(log)] == list(range(2 * whole))
        log.close()
