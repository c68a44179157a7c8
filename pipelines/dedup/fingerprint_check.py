"""A share of the fingerprints is computed again by the ``simhash`` package while ingest works; a difference stops it.

The kernels of fingerprint.py and features.py are compiled on the machine where they run. One that computes something else there would find other
duplicates than the index was made for, in silence; so a difference stops ingest before anything is committed. Which documents are checked follows
from their text's hash, so the same documents are checked in every run. Cost: about 2 ms for a document of 4 KB, so 0.6 % of the pipeline's time
at the default share.
"""

import re
from collections import Counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import simhash

from pipelines.dedup.features import SINGLES
from schemas.errors import StepFailed
from schemas.settings_dedup import DedupSettings

MAX_CHECKED_BYTES = 8_192
"""Longer texts are not checked: the package takes a second for a megabyte."""
_WORD_MASK = 2**64 - 1
_SINGLE_CLASS = "".join(f"{chr(first)}-{chr(last)}" for first, last in SINGLES)
_FEATURE = re.compile(f"[{_SINGLE_CLASS}]|[^\\W{_SINGLE_CLASS}]+")


def reference_fingerprint(text: str, feature_cap: int) -> int:
    """What the ``simhash`` package makes of a text's features, written plainly: words in lower case, single characters of unspaced scripts."""
    features = _FEATURE.findall("".join(char.lower()[0] for char in text))
    weights = {feature: min(count, feature_cap) for feature, count in Counter(features).items()}
    return int(simhash.Simhash(weights, hashfunc=reference_hash).value) if weights else 0


def reference_hash(feature: bytes) -> int:
    """The hash of a feature (UTF-8), one code point at a time, as features.py defines it."""
    state = 0
    for char in feature.decode("utf-8"):
        state = (state ^ ord(char)) * 0x9E3779B97F4A7C15 & _WORD_MASK
        state ^= state >> 32
    state = (state ^ state >> 33) * 0xFF51AFD7ED558CCD & _WORD_MASK
    state = (state ^ state >> 33) * 0xC4CEB9FE1A85EC53 & _WORD_MASK
    return state ^ state >> 33


def check_fingerprints(
    texts: pa.Array, content_hashes: pa.FixedSizeBinaryArray, fingerprints: npt.NDArray[np.uint64], settings: DedupSettings
) -> None:
    """Compare the chosen ones of n texts (large_string) with the package. Raises StepFailed at the first that differs."""
    for row in _chosen(texts, content_hashes, settings.check_fraction).tolist():
        expected = reference_fingerprint(texts[row].as_py(), settings.feature_cap)
        if int(fingerprints[row]) != expected:
            raise StepFailed(
                f"the compiled fingerprint of the document with content hash {content_hashes[row].as_py().hex()} is "
                f"{int(fingerprints[row]):#018x}, and the "
                f"simhash package says {expected:#018x}: duplicates would be missed; nothing was committed. Remove the compiled kernels "
                "(pipelines/__pycache__), start again, and report the document if it happens again"
            )


def _chosen(texts: pa.Array, content_hashes: pa.FixedSizeBinaryArray, fraction: float) -> npt.NDArray[np.int64]:
    """Rows whose hash's last eight bytes lie in the lowest share, of texts that are short enough."""
    if not len(texts) or not fraction:
        return np.zeros(0, np.int64)
    words = np.frombuffer(content_hashes.buffers()[1], np.dtype("<u8")).reshape(-1, 2)[content_hashes.offset : content_hashes.offset + len(texts), 1]
    sizes = np.diff(np.frombuffer(texts.buffers()[1], np.int64, len(texts) + 1, texts.offset * 8))
    return np.flatnonzero((words < np.uint64(min(fraction * 2.0**64, 2.0**64 - 2048))) & (sizes <= MAX_CHECKED_BYTES))
