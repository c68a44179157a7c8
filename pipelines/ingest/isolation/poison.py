"""One document that makes a step fail stops nothing: its block is halved until it is alone, and it becomes a dead letter with rule ``poison``.

What a document should never do it may do all the same: meet a bug, need more memory than there is, crash a library written in C. The error
then belongs to that record, and everything else goes on. Errors that are not the record's fault are raised as they are: everything that
Headrace raises on purpose (the operator's hook, settings, models, the broker) and everything of the operating system (OSError).

A step may be broken itself: a bug, a damaged installation. Then nothing is dead-lettered and StepFailed is raised. Two things tell:
more records of a block fail than the allowance (MAX_POISON, or one in twenty of a large block), or all of them fail and so does PROBE, a
document in which nothing is unusual. How many good records stand beside the bad ones decides nothing: a partition may hold bad ones only.

Cost: nothing for a block that passes; k offenders among n records cost about 2 k log2(n / k) calls, 2 n at most.
"""

import traceback
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrow import RECORDS, Outcome
from schemas.errors import EnvelopeError, HeadraceError, StepFailed

POISON = "poison"
"""The rule, as in ``dead/poison``."""
MAX_ERROR_CHARS = 300
MAX_POISON, MAX_POISON_SHARE = 16, 0.05
"""Records of a block, and share of it, that may be poison; whichever is more."""
PROBE = b'{"text": "The mill stands by the river. Its wheel turns when water comes down from the hill."}'
"""The value of a record that a step which works can prepare."""
Step = Callable[[pa.Table], pa.Table]
"""schemas.arrow.RECORDS -> schemas.arrow.prepared, row by row."""


def isolated(step: Step, records: pa.Table, ways: int = 2) -> pa.Table:
    """``step(records)``, with records on which it fails dead-lettered. Raises what is not a record's fault.

    ``ways``: into how many parts a block on which it fails is split; more where a failure costs more than a call.
    """
    try:
        return step(records)
    except BaseException as error:
        if not is_records_fault(error):
            raise
        schema = _checked(step, records.slice(0, 0)).schema  # what fails on nothing at all fails on everything
        allowance = _Allowance(max(MAX_POISON, int(len(records) * MAX_POISON_SHARE)))
        parts = _split(step, records, schema, error, ways, allowance)
        if all(part.is_poison for part in parts):
            _checked(step, _probe(records))
    return pa.concat_tables(part.rows for part in parts)


def _checked(step: Step, records: pa.Table) -> pa.Table:
    """``step(records)`` of records on which only a broken step fails. Raises StepFailed, and what is never a record's fault."""
    try:
        return step(records)
    except BaseException as error:
        if not is_records_fault(error):
            raise
        raise StepFailed(
            f"preparing fails on any document, also on one that has nothing unusual in it: {described(error)}{_place(error)}; nothing was committed "
            "or dead-lettered. Repair the installation or the step, and start again"
        ) from error


def _probe(records: pa.Table) -> pa.Table:
    """One record that holds PROBE, at the place of the first of these."""
    place = records.slice(0, 1).select(["topic", "partition", "offset", "timestamp_ms"]).to_pylist()[0]
    row = {**place, "is_control": False, "key": None, "value": PROBE, "headers": []}
    return pa.Table.from_pylist([row], schema=RECORDS)


def _place(error: BaseException) -> str:
    """Where in the code it was raised, as far as that is known here."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def is_records_fault(error: BaseException) -> bool:
    """Whether another record could have passed where this one failed."""
    if isinstance(error, EnvelopeError):
        return True
    # What is no Exception may still be a panic of a library written in Rust.
    return not isinstance(error, HeadraceError | OSError | ImportError | KeyboardInterrupt | SystemExit | GeneratorExit)


class _Part:
    def __init__(self, rows: pa.Table, *, is_poison: bool) -> None:
        self.rows = rows
        self.is_poison = is_poison


class _Allowance:
    """How many more records of a block may be poison."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def take(self, error: BaseException) -> None:
        """Count one; raises StepFailed if that is one too many."""
        self._left -= 1
        if self._left < 0:
            raise StepFailed(
                f"preparing fails on more than {self._most} records of one block, the last time with {described(error)}. So the step is at "
                "fault and not the records; nothing was committed or dead-lettered. Repair the installation or the step, and start again"
            ) from error


def _split(step: Step, records: pa.Table, schema: pa.Schema, error: BaseException, ways: int, allowance: _Allowance) -> list[_Part]:
    """The outcome of records on which the step has failed, in parts, in order."""
    if len(records) == 1:
        allowance.take(error)
        return [_Part(dead_rows(records, schema, described(error)), is_poison=True)]
    size = -(-len(records) // ways)
    parts: list[_Part] = []
    for part in (records.slice(start, size) for start in range(0, len(records), size)):
        try:
            parts.append(_Part(step(part), is_poison=False))
        except BaseException as inner:
            if not is_records_fault(inner):
                raise
            parts += _split(step, part, schema, inner, ways, allowance)
    return parts


def described(error: BaseException) -> str:
    """The error's type and the first line of what it says, bounded."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:MAX_ERROR_CHARS]


def dead_rows(records: pa.Table, schema: pa.Schema, error: str) -> pa.Table:
    """Prepared rows for records on which the steps fail, with their bytes for the dead letter."""
    known = {name: records[name] for name in ("topic", "partition", "offset", "timestamp_ms", "key", "value", "headers")}
    known |= {
        name: pa.repeat(pa.scalar(value), len(records)) for name, value in (("outcome", str(Outcome.DEAD)), ("reason", POISON), ("error", error))
    }
    columns = [known[field.name].cast(field.type) if field.name in known else pa.nulls(len(records), field.type) for field in schema]
    return pa.table(columns, schema=schema)


def sizes(records: pa.Table) -> pa.Array:
    """Bytes of key and value of each record, 0 where there is none: about how much text they hold."""
    keys, values = (pc.binary_length(records[name]).fill_null(0) for name in ("key", "value"))
    return pc.add(keys, values).cast(pa.int64())
