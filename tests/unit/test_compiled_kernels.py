"""Setting up compiles what people use later."""

from typing import Any

from pipelines.kernels.setup import compile_choices
from pipelines.quality import classifier, fit, scoring
from pipelines.views import decontamination, passages, rows


def test_no_kernel_of_quality_models_and_views_is_left_to_compile_when_it_is_used_first() -> None:
    compile_choices()
    called: list[Any] = [fit._write_stream, fit._count_frequencies, fit._gather_features, classifier._descend, scoring._score_rows]
    called += [passages._fill, passages._find_all, decontamination._similarities, rows._copy]
    assert [kernel for kernel in called if not kernel.signatures] == []
