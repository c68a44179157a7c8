"""Decides about a block that stays where it was prepared: the same, row by row, as for one that is here."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.duplicates import Duplicates
from pipelines.dataset.retractions.retractions import Retractions
from pipelines.dataset.settling import DUPLICATES, DecidedBlock, changed_rows, duplicates_named
from pipelines.dedup.resolve import ID_HASH, REASONS, Decided
from pipelines.ingest.apart import fetch_ids, wide
from pipelines.ingest.decisive import NUM_TOKENS, BlockApart
from schemas.arrow import Outcome


def decided(block: BlockApart, retractions: Retractions, duplicates: Duplicates, resources: dict[str, float]) -> DecidedBlock:
    """The block with what became of its candidates. ``resources``: of the task that fetches ids, if they are asked for."""
    decisive = block.decisive
    if decisive.acts_on_ids or retractions.may_concern(decisive.candidates[ID_HASH].to_numpy()):
        return _by_ids(block, retractions, duplicates, resources)
    found = duplicates.resolve_apart(decisive.candidates, decisive.looked_up, block.made, fetch_ids)
    retractions.kept(int(found.is_kept.sum()))
    names = [each.source.ids for each in found.duplicate_of.blocks]
    return DecidedBlock(block.source, len(block), _num_tokens(decisive.candidates), _duplicates_of(found), names)


def _by_ids(block: BlockApart, retractions: Retractions, duplicates: Duplicates, resources: dict[str, float]) -> DecidedBlock:
    rows = wide(block, resources)
    admitted = retractions.admit(rows)
    verdicts = retractions.resolve(admitted, duplicates)
    candidates = admitted.filter(pc.equal(admitted["outcome"], Outcome.KEPT))
    return DecidedBlock(block.source, len(block), _num_tokens(candidates), duplicates_named(verdicts), [], changed_rows(rows, admitted))


def _duplicates_of(found: Decided) -> pa.Table:
    places = found.duplicate_of
    is_here = places.block < 0
    return pa.table(
        [
            pa.array(found.duplicates.astype(np.int32)),
            REASONS.take(pa.array(found.reason)),
            pa.array(found.similarity),
            places.ids,
            pa.array(places.block, mask=is_here),
            pa.array(places.position, mask=is_here),
        ],
        schema=DUPLICATES,
    )


def _num_tokens(candidates: pa.Table) -> npt.NDArray[np.int32]:
    numbers: npt.NDArray[np.int32] = candidates[NUM_TOKENS].to_numpy()
    return numbers
