"""What a writer has to know of every version before the newest: 17 bytes each, instead of its manifest.

Which attempt committed it, how many documents it kept, and what else it holds: whoever needs more asks the columns (dataset/columns.py) or reads
the manifest of the few versions that have it. So the memory of a writer does not grow with the manifests of months.
"""

from enum import IntFlag

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrow import Outcome

ROW = np.dtype([("attempt", "<u8"), ("num_kept", "<i8"), ("holds", "u1")])
"""Of one version: its attempt as a number, its kept documents, and what else it has (Holds)."""
Rows = npt.NDArray[np.void]


class Holds(IntFlag):
    """What a version may have."""

    SEGMENT = 1
    """Fingerprints of kept documents."""
    MASKS = 2
    """Spans that its retractions took out."""
    RETRACTIONS = 4
    """Rows of the audit trail that are retractions."""
    BASE = 8
    """A compacted index of duplicates."""
    BOILERPLATE = 16
    """Counts of lines."""
    MERGED = 32
    """Files that several shards were merged into."""


_LISTS = {
    Holds.SEGMENT: "dedup_segments",
    Holds.MASKS: "masks",
    Holds.BASE: "dedup_base",
    Holds.BOILERPLATE: "boilerplate",
    Holds.MERGED: "merged",
}


def history_of(columns: pa.Table) -> Rows:
    """One row per version, in order; ``columns`` are rows of VERSIONS."""
    rows = np.zeros(len(columns), ROW)
    rows["attempt"] = columns["attempt"].to_numpy()
    rows["num_kept"] = pc.struct_field(columns["outcomes"], str(Outcome.KEPT)).to_numpy()
    has = {kind: pc.list_value_length(columns[name]).to_numpy() > 0 for kind, name in _LISTS.items()}
    has[Holds.RETRACTIONS] = pc.struct_field(columns["outcomes"], str(Outcome.RETRACTED)).to_numpy() > 0
    for kind, flags in has.items():
        rows["holds"] |= np.where(flags, int(kind), 0).astype(np.uint8)
    return rows
