"""SimHash over Arrow buffers equals the `simhash` package; the feature function is written plainly here as the reference."""

import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import simhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.dedup.features import SINGLES
from pipelines.dedup.fingerprint import content_hashes, fingerprint_texts
from schemas.settings_dedup import DedupSettings

WORD_MASK = 2**64 - 1
SINGLE_CLASS = "".join(f"{chr(first)}-{chr(last)}" for first, last in SINGLES)
FEATURE = re.compile(f"[{SINGLE_CLASS}]|[^\\W{SINGLE_CLASS}]+")


def features_of(text: str) -> list[str]:
    return FEATURE.findall("".join(char.lower()[0] for char in text))


def feature_hash(feature: bytes) -> int:
    state = 0
    for char in feature.decode("utf-8"):
        state = (state ^ ord(char)) * 0x9E3779B97F4A7C15 & WORD_MASK
        state ^= state >> 32
    state = (state ^ state >> 33) * 0xFF51AFD7ED558CCD & WORD_MASK
    state = (state ^ state >> 33) * 0xC4CEB9FE1A85EC53 & WORD_MASK
    return state ^ state >> 33


def reference(text: str, cap: int) -> int:
    weights = {feature: min(count, cap) for feature, count in Counter(features_of(text)).items()}
    return int(simhash.Simhash(weights, hashfunc=feature_hash).value) if weights else 0


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
    assert fingerprints(texts, cap) == [reference(text, cap) for text in texts]


@pytest.mark.parametrize("cap", [1, 2, 254, 255])
def test_fingerprint_equals_the_package_when_a_feature_occurs_a_thousand_times(cap: int) -> None:
    text = "water " * 1000 + "mill " * 300 + "wheel"
    assert fingerprints([text], cap) == [reference(text, cap)]


def test_fingerprint_equals_the_package_when_a_document_has_more_features_than_the_first_hash_table() -> None:
    text = " ".join(str(number * number) for number in range(30_000))
    assert fingerprints(["before", text, "after"], 3) == [reference(t, 3) for t in ("before", text, "after")]


def test_a_tie_clears_the_bit_as_in_the_package() -> None:
    # Two features of equal weight: every bit in which they differ is a tie.
    left, right = feature_hash(b"left"), feature_hash(b"right")
    assert fingerprints(["left right"]) == [left & right] == [reference("left right", 5)]


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
