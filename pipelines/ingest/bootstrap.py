"""The one tokenizer of a dataset: chosen with its first version, then never changed.

A trained tokenizer is a pure function of the stream's first documents (in planned order, up to ``tokenizer.max_training_bytes``), so a
first version that is tried again after a crash gets the same ids.
"""

import hashlib
import logging
import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from pipelines.ingest.isolation.poison import isolated
from pipelines.ingest.isolation.quarantine import Quarantine, TrainingMark
from pipelines.ingest.portions import in_portions
from pipelines.kafka.reading import Slice, read_blocks
from pipelines.kernels.ingest import ensure_compiled
from pipelines.steps.prepare import clean
from pipelines.tokenizers.tokenizer import TOKENIZER_FILE, read_tokenizer, write_tokenizer
from schemas.errors import SettingsError, TokenizerMismatch
from schemas.manifest import DatasetManifest, TokenizerRef
from schemas.settings import Settings

_log = logging.getLogger(__name__)


def create_tokenizer(parts: Sequence[Slice], settings: Settings) -> TokenizerRef:
    """Import the tokenizer that the settings name, or train one on the first documents of the slices."""
    root = Path(settings.root).resolve()
    ref = write_tokenizer(root, first_texts(parts, settings), settings.tokenizer)
    requested = None if settings.tokenizer.path else settings.tokenizer.vocab_size
    if requested is not None and ref.vocab_size < requested:
        _log.warning(
            "the first batch holds too little text for tokenizer.vocab_size %d: the dataset's tokenizer has %d ids, and keeps them. For a better one "
            "begin with more documents (ingest.min_batch_records, ingest.max_wait_s), or name one with tokenizer.path",
            requested,
            ref.vocab_size,
        )
    return ref.model_copy(update={"requested_vocab_size": requested})


def first_texts(parts: Sequence[Slice], settings: Settings) -> Iterator[str]:
    """Cleaned texts in the order of the slices; reads no further than the caller asks."""
    ensure_compiled()
    step = partial(clean, settings=settings)
    with TrainingMark(Path(settings.root)) as mark, Quarantine(pickle.dumps(step)) as quarantine:
        for part in parts:
            for records in read_blocks(part, settings):
                checked = quarantine if mark.is_suspect(records) else partial(isolated, step)
                for cleaned in in_portions(checked, records):
                    yield from cleaned["text"].drop_null().to_pylist()


def check_unchanged(newest: DatasetManifest, settings: Settings) -> None:
    """Refuse settings under which the next version would not fit the ones before.

    Raises TokenizerMismatch or SettingsError, naming both values.
    """
    if newest.sequence_length != settings.packing.sequence_length:
        raise SettingsError(
            f"packing.sequence_length is {settings.packing.sequence_length}, but the rows of this dataset have {newest.sequence_length} tokens; "
            "set it back, or start a new dataset under another --root"
        )
    tokenizer, ref = settings.tokenizer, newest.tokenizer
    if tokenizer.path:
        sha256 = hashlib.sha256(read_tokenizer(Path(tokenizer.path))[TOKENIZER_FILE]).hexdigest()
        if sha256 != ref.sha256:
            raise _mismatch(f"tokenizer.path {tokenizer.path!r} holds tokenizer {sha256[:12]}, but the dataset was made with {ref.sha256[:12]}")
    elif ref.requested_vocab_size not in (None, tokenizer.vocab_size):
        raise _mismatch(f"tokenizer.vocab_size is {tokenizer.vocab_size}, but the dataset's tokenizer was trained with {ref.requested_vocab_size}")


def _mismatch(what: str) -> TokenizerMismatch:
    return TokenizerMismatch(
        f"{what}; set it back, or go on with another tokenizer under another root: `headrace tokenizer switch SHA256 --into NEW_ROOT` takes along "
        "what was ingested so far"
    )
