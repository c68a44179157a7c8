"""All kernels, made ready when Headrace is set up (``python -m pipelines.kernels.setup``): an ingest's, and those of quality models and views.

The first `headrace quality fit` would compile for ten seconds otherwise, and the first view for two; an ingest without them needs none of it.
"""

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.dataset.writer import ResolvedBlock, VersionPlan, build_manifest, kept_rows, publish, write_version
from pipelines.kernels.ingest import SAMPLE, ensure_compiled, sample_records
from pipelines.quality.fit import MIN_DOCUMENTS, FitOptions, fit_language
from pipelines.steps.prepare import prepare
from pipelines.tokenizers.tokenizer import load_tokenizer, write_tokenizer
from pipelines.views.decontamination import EvaluationTexts
from pipelines.views.making import create_view
from pipelines.views.rows import ViewRows
from pipelines.views.selection import open_view
from schemas.arrow import MASKS, SEGMENT
from schemas.manifest import OffsetRange
from schemas.settings import Settings
from schemas.settings_data import IngestSettings, PackingSettings, TokenizerSettings
from schemas.settings_quality import QualitySettings
from schemas.view import ViewSpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def compile_choices() -> None:
    """Fit models to the sample, and make a view of it that is kept clean of an evaluation set. 12 s of a core, half a second the next time."""
    references, good, bad = (
        pa.array([f"{text} {kind} {index}" for index in range(MIN_DOCUMENTS) for text in SAMPLE], pa.large_string())
        for kind in ("reference", "good", "bad")
    )
    fit_language(references, good, bad, FitOptions())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        every_document = {"quality": QualitySettings(rule_sets=()), "ingest": IngestSettings(validation_fraction=0.0)}
        settings = Settings(packing=PackingSettings(sequence_length=32), **every_document)
        _commit_sample(root, settings)
        create_view(root, "sample", ViewSpec(), [EvaluationTexts("sample", ["a", "b"], [SAMPLE[0] * 3, SAMPLE[1] * 2])], settings.dedup, NOW)
        ViewRows(open_view(root, "sample@1")).gather(np.arange(1))


def _commit_sample(root: Path, settings: Settings) -> None:
    """Version 1 of a dataset: the sample."""
    ref = write_tokenizer(root, SAMPLE, TokenizerSettings(vocab_size=300))
    block = prepare(sample_records(), settings, load_tokenizer(root, ref))
    kept = kept_rows(block)
    offsets = {"sample": {0: OffsetRange(start=0, end=len(block))}}
    plan = VersionPlan(version=1, attempt="0" * 12, topic_ids={"sample": "A" * 22}, offsets=offsets, tokenizer=ref)
    none_dropped = pa.table({name: pa.nulls(len(kept), kind) for name, kind in _VERDICT.items()})
    files = write_version(root, plan, settings, [ResolvedBlock(block, none_dropped)], lambda: kept.select(SEGMENT.names).cast(SEGMENT), _no_masks)
    publish(root, build_manifest(plan, files, settings, parent=None, now=NOW))


_VERDICT = {"duplicate_of": pa.string(), "reason": pa.string(), "similarity": pa.float32()}


def _no_masks(_: Sequence[Path]) -> pa.Table:
    return MASKS.empty_table()


if __name__ == "__main__":
    ensure_compiled()
    compile_choices()
