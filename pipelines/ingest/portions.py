"""A block whose records refer to more than fits into memory is prepared in portions.

How much that is, is known when it is read: a record may not say how large its document is. So a step that meets too much raises BlockTooLarge and
the block is halved, down to single records. Invariant: the rows are the same and in the same order, in more blocks. Cost: nothing for
blocks that fit; else at most as much again is read as there is, in pieces of MAX_OUTSIDE_BYTES (steps/decode.py).
"""

from collections.abc import Iterator

import pyarrow as pa

from pipelines.ingest.isolation.poison import Step
from schemas.errors import BlockTooLarge


def in_portions(step: Step, records: pa.Table) -> Iterator[pa.Table]:
    """What the step makes of the records, in as many tables as it takes."""
    try:
        rows = step(records)
    except BlockTooLarge:
        if len(records) < 2:
            raise
    else:
        yield rows
        return
    half = len(records) // 2
    yield from in_portions(step, records.slice(0, half))
    yield from in_portions(step, records.slice(half))
