"""A 32-byte MinHash sketch per document, which estimates how much of their shingles two documents share.

One-permutation hashing (Li, Owen, Zhang 2012) with b-bit values (Li, König 2010): the hash of every shingle (a run of
SHINGLE_FEATURES features) picks one of 32 bins, each bin keeps its smallest hash, and of that one byte: 0 for an empty
bin, else a value from 1 to 255. The similarity of two sketches is the share of equal bins among those that are not empty in both.

The estimate of the Jaccard similarity J is unbiased but for accidental equality of bytes, which adds (1 - J)/255. Its standard
error is sqrt(J (1 - J)/m) over m bins that are not empty in both: 0.088 at J = 0.5 for m = 32, more for documents of few shingles.
Two sketches without any shingle have similarity 0.
"""

import numba
import numpy as np

from pipelines.dedup.features import mix
from schemas.arrow import SKETCH_BYTES

SHINGLE_FEATURES = 2
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)


@numba.njit(cache=True, nogil=True)
def shingle_hash(features, start, end):  # type: ignore[no-untyped-def]
    """Hash of the run ``features[start:end]``; depends on their order."""
    state = np.uint64(end - start)
    for index in range(start, end):
        state = state * np.uint64(0xD6E8FEB86659FD93) + features[index]
    return mix(state)


@numba.njit(cache=True, nogil=True)
def sketch_features(features, count, smallest, sketch):  # type: ignore[no-untyped-def]
    """Write the sketch of the first ``count`` features to ``sketch`` (uint8[32]); ``smallest`` is scratch, uint64[32].

    A document shorter than a shingle is one shingle as it is; one without features has an all-zero sketch.
    """
    smallest[:] = _EMPTY
    width = min(count, SHINGLE_FEATURES)
    for start in range(count - width + 1 if count else 0):
        value = shingle_hash(features, start, start + width)
        bin_index = value >> np.uint64(59)  # the top 5 bits pick one of 32
        smallest[bin_index] = min(smallest[bin_index], value)
    for bin_index in range(SKETCH_BYTES):
        value = smallest[bin_index]
        # The low bits of a smallest hash are still uniform; its high bits are not.
        sketch[bin_index] = 0 if value == _EMPTY else np.uint8(1 + (value & np.uint64(0xFFFFFFFF)) % np.uint64(255))


@numba.njit(cache=True, nogil=True)
def sketch_similarity(left, right):  # type: ignore[no-untyped-def]
    """Estimated Jaccard similarity of two sketches (uint8[32] each), a float32 from 0 to 1."""
    filled = 0
    equal = 0
    for bin_index in range(SKETCH_BYTES):
        if left[bin_index] | right[bin_index]:
            filled += 1
            equal += left[bin_index] == right[bin_index]
    return np.float32(equal) / np.float32(filled) if filled else np.float32(0)
