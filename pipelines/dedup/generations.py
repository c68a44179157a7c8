"""Look-ups in the immutable part of a duplicate index, by any process that is given it.

A generation is that part at one moment: a base, and the larger immutable tiers after it. It says up to which row it has everything. Whoever
prepares documents looks them up in some generation; the writer then compares them with the rows from there on, and decides. Invariant: the
verdicts are those of a writer that looks up everything itself, whichever generation was asked and however old it is: rows are numbered once and
for all, what is compared with does not change, and which rows are retracted is asked when the document is decided.

Costs what index.py says of its tiers, once for the process that asks. An answer takes 8 bytes for each row that is found.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dedup.base import Base, open_base
from pipelines.dedup.index import merge_found
from pipelines.dedup.kept import FREE, Columns, columns_of
from pipelines.dedup.tables import Found, Tables, find_within

Numbers = npt.NDArray[np.uint32]
SMALL = ("shifts", "masks", "radii", "key_masks", "probe_tables", "probe_flips", "first_starts", "part")
"""Arrays of tables that say how these are cut."""


class Generation(NamedTuple):
    """The immutable part of an index."""

    name: int
    """Ascends while an index lives; an answer carries it."""
    num_rows: int
    """Every row below this is in it, and no other."""
    base: Path | None
    near: bool
    """Whether near rows are looked for, or equal ones only."""
    max_hamming: int
    tiers: tuple[Tables, ...] = ()
    """After the base, in row order."""


class LookedUp(NamedTuple):
    """What a generation holds of some documents: pairs (position of the document, row), of which the positions ascend."""

    generation: int
    below: int
    """The generation's ``num_rows``."""
    base_rows: int
    """Rows of its base: an answer is of no use to an index over another one."""
    exact_positions: Numbers
    exact_rows: Numbers
    """The latest row of the base with the same content hash."""
    near_positions: Numbers
    near_rows: Numbers
    """Rows within the distance."""


class Spread(NamedTuple):
    """The same, for documents first … stop - 1, as the resolver takes it."""

    exact: npt.NDArray[np.int64]  # FREE where there is none
    near: Found


def look_up(generation: Generation, documents: pa.Table) -> LookedUp:
    """Look up documents (columns fingerprint, content_hash and sketch, without nulls)."""
    columns = columns_of(documents)
    base = _opened(generation.base) if generation.base else None
    exact = _exact(base, columns)
    found = _near(generation, base, columns) if generation.near else []
    near = merge_found(found, len(documents))
    exact_positions = np.flatnonzero(exact != FREE)
    near_positions = np.repeat(np.arange(len(documents), dtype=np.uint32), np.diff(near.starts))
    return LookedUp(
        generation.name,
        generation.num_rows,
        base.num_rows if base else 0,
        exact_positions.astype(np.uint32),
        exact[exact_positions].astype(np.uint32),
        near_positions,
        near.rows.astype(np.uint32),
    )


def spread(looked_up: LookedUp, first: int, stop: int) -> Spread:
    """What was found for some of the documents."""
    exact = np.full(stop - first, FREE, np.int64)
    start, end = np.searchsorted(looked_up.exact_positions, (first, stop))
    exact[looked_up.exact_positions[start:end].astype(np.int64) - first] = looked_up.exact_rows[start:end]
    edges = np.searchsorted(looked_up.near_positions, np.arange(first, stop + 1)).astype(np.int64)
    return Spread(exact, Found(edges - edges[0], looked_up.near_rows[edges[0] : edges[-1]].astype(np.int64)))


def _exact(base: Base | None, columns: Columns) -> npt.NDArray[np.int64]:
    return base.rows_by_content(columns.content_hash) if base else np.full(len(columns.fingerprint), FREE, np.int64)


def _near(generation: Generation, base: Base | None, columns: Columns) -> list[Found]:
    """Also for documents with an equal row: whether that one is retracted is not known here."""
    tables = [base.near, *map(_as_built, generation.tiers)] if base else list(map(_as_built, generation.tiers))
    has_features = np.asarray(columns.sketch.any(axis=1))
    return [find_within(each, generation.max_hamming, columns.fingerprint, has_features) for each in tables]


def _as_built(tables: Tables) -> Tables:
    """With the small arrays writable, as they are where tables are built: what another process sent is read-only, another type to Numba."""
    copies: dict[str, Any] = {name: np.array(getattr(tables, name)) for name in SMALL}
    return tables._replace(**copies)


@lru_cache(maxsize=2)
def _opened(path: Path) -> Base:
    return open_base(path)
