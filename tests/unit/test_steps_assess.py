"""The order of the steps: each sees what the one before let pass, and the first broken rule is the verdict."""

from pathlib import Path

import pyarrow as pa

from pipelines.quality.fit import FitOptions, fit_language
from pipelines.quality.models import write_model
from pipelines.steps.assess import Assessed, assess
from schemas.settings_sources import load_settings

PROSE = "The old mill stands by the river, and its wheel turns slowly whenever the water comes down from the hills above the village {}."
MASH = "qzx vbnw kjhg zzxq wvut plkm nbvc qwsx edcr fvtg bzhn ujmi kolp"


def assessed(texts: list[str], **settings: object) -> Assessed:
    declared = pa.chunked_array([pa.array([None] * len(texts), pa.string())])
    return assess(pa.array(texts, pa.large_string()), declared, load_settings("", {}, settings))


def test_redaction_comes_after_the_rules_and_before_the_models(tmp_path: Path) -> None:
    prose = pa.array([PROSE.format(f"number {index} of them") for index in range(300)], pa.large_string())
    model = write_model(tmp_path, {"*": fit_language(prose, pa.array([], pa.large_string()), pa.array([], pa.large_string()), FitOptions())})
    mail = PROSE.format("which miller@example-mill.com owns")
    thresholds = {"quality_model.max_perplexity": ("*=1000",), "quality_model.min_informativeness_quantile": 0}
    found = assessed([mail, "too short", MASH], **{"root": str(tmp_path), "quality_model.path": model} | thresholds)
    assert found.texts.to_pylist() == [mail.replace("miller@example-mill.com", "<EMAIL>"), None, None]
    assert found.rules.to_pylist() == [None, "too_short", "perplexity/too_high"]
    assert found.pii.to_pylist()[0] == [{"type": "email", "count": 1}]
    assert found.pii.to_pylist()[1] is None
    assert found.scores.perplexity[0].is_valid
    assert not found.scores.perplexity[1].is_valid


def test_a_document_is_dropped_for_what_it_holds_and_counted() -> None:
    found = assessed([PROSE.format("of miller@example-mill.com"), PROSE.format("nobody")], **{"pii.email": "drop"})
    assert found.rules.to_pylist() == ["pii/email", None]
    assert [text is None for text in found.texts.to_pylist()] == [True, False]
    assert found.pii.to_pylist() == [[{"type": "email", "count": 1}], None]


def test_each_kept_text_has_its_own_lines_whatever_was_rejected_before_it() -> None:
    texts = [PROSE.format("of Anna"), "too short", PROSE.format("of Bela"), "too short too", PROSE.format("of Cyril")]
    found = assessed(texts, **{"dedup.boilerplate": True})
    alone = [assessed([text], **{"dedup.boilerplate": True}).paragraphs.to_pylist()[0] for text in texts]
    assert found.paragraphs.to_pylist() == alone
    assert [lines is None for lines in alone] == [False, True, False, True, False]
    assert len({tuple(lines) for lines in alone if lines}) == 3


def test_no_documents_are_assessed_to_nothing() -> None:
    assert [len(column) for column in assessed([])[:5]] == [0] * 5
