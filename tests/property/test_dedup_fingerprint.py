"""SimHash over Arrow buffers equals the `simhash` package; the feature function is written plainly in fingerprint_check.py."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.dedup.fingerprint import content_hashes, fingerprint_texts
from pipelines.dedup.fingerprint_check import check_fingerprints, reference_fingerprint, reference_hash
from schemas.errors import StepFailed
from schemas.settings_dedup import DedupSettings


def fingerprints(texts: list[str], cap: int = 5) -> list[int]:
    return [int(value) for value in fingerprint_texts(pa.array(texts, pa.string()), DedupSettings(feature_cap=cap)).fingerprint]


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
WORDY_TEXT = st.lists(
    st.sampled_from(["the", "The", "mill", "水车", "と水", "İz", "ΣΑΣ", "한국어", "ไทย", "𠀀", "a_b", "٣", "😀", "、", "ﬁ", "ー"]), max_size=40
).map(" ".join)


@settings(max_examples=250, deadline=None)
@given(st.lists(ANY_TEXT | WORDY_TEXT, max_size=8), st.integers(1, 255))
@example(["", " ", "İ", "ΣΣ ς", "a" * 5000, "\x00", "ab\u0301c", "漢字かな交じり文"], 1)
def test_fingerprint_equals_the_simhash_package_on_any_unicode_text(texts: list[str], cap: int) -> None:
    assert fingerprints(texts, cap) == [reference_fingerprint(text, cap) for text in texts]


@pytest.mark.parametrize("cap", [1, 2, 254, 255])
def test_fingerprint_equals_the_package_when_a_feature_occurs_a_thousand_times(cap: int) -> None:
    text = "water " * 1000 + "mill " * 300 + "wheel"
    assert fingerprints([text], cap) == [reference_fingerprint(text, cap)]


def test_fingerprint_equals_the_package_when_a_document_has_more_features_than_the_first_hash_table() -> None:
    text = " ".join(str(number * number) for number in range(30_000))
    assert fingerprints(["before", text, "after"], 3) == [reference_fingerprint(t, 3) for t in ("before", text, "after")]


def test_a_tie_clears_the_bit_as_in_the_package() -> None:
    # Two features of equal weight: every bit in which they differ is a tie.
    left, right = reference_hash(b"left"), reference_hash(b"right")
    assert fingerprints(["left right"]) == [left & right] == [reference_fingerprint("left right", 5)]


@settings(max_examples=60, deadline=None)
@given(st.lists(ANY_TEXT | WORDY_TEXT | st.none(), min_size=1, max_size=12), st.data())
def test_slices_chunks_nulls_and_string_types_make_no_difference(texts: list[str | None], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(texts)))
    whole = fingerprint_texts(pa.array([text or "" for text in texts], pa.string()), DedupSettings())
    hashes = content_hashes(pa.array([text or "" for text in texts], pa.string()))
    small, large = pa.array(["x", *texts], pa.string())[1:], pa.array(texts, pa.large_string())
    for column in (small, large, pa.chunked_array([small[:cut], small[cut:]])):
        other = fingerprint_texts(column, DedupSettings())
        assert np.array_equal(other.fingerprint, whole.fingerprint)
        assert np.array_equal(other.sketch, whole.sketch)
        assert content_hashes(column).equals(hashes)
    tail = fingerprint_texts(small[cut:], DedupSettings())
    assert np.array_equal(tail.fingerprint, whole.fingerprint[cut:])
    assert np.array_equal(tail.sketch, whole.sketch[cut:])


def test_a_wrong_fingerprint_is_found_while_ingest_works() -> None:
    texts = pa.array([f"The miller of house {number} grinds 水车 flour." for number in range(40)], pa.large_string())
    right, hashes = fingerprint_texts(texts, DedupSettings()).fingerprint, content_hashes(texts)
    check_fingerprints(texts, hashes, right, DedupSettings(check_fraction=1.0))
    wrong = right.copy()
    wrong[17] ^= np.uint64(1 << 40)
    with pytest.raises(StepFailed, match=hashes[17].as_py().hex()):
        check_fingerprints(texts, hashes, wrong, DedupSettings(check_fraction=1.0))
    check_fingerprints(texts, hashes, wrong, DedupSettings(check_fraction=0.0))


def test_the_share_of_documents_that_is_checked_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pa.array([f"text {number}" for number in range(4_000)], pa.large_string())
    checked: list[str] = []

    def noted(text: str, feature_cap: int) -> int:
        checked.append(text)
        return 0 * feature_cap

    monkeypatch.setattr("pipelines.dedup.fingerprint_check.reference_fingerprint", noted)
    zeros = np.zeros(len(texts), np.uint64)
    check_fingerprints(texts, content_hashes(texts), zeros, DedupSettings(check_fraction=0.1))
    assert 320 < len(checked) < 480
    of_all, checked[:] = list(checked), []
    check_fingerprints(texts.slice(1_000, 2_000), content_hashes(texts).slice(1_000, 2_000), zeros[:2_000], DedupSettings(check_fraction=0.1))
    assert checked == [text for text in of_all if 1_000 <= int(text.split()[1]) < 3_000]
