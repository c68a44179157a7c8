"""The one tokenizer of a dataset: chosen with its first version, then never changed.

A trained tokenizer is a pure function of the stream's first documents, in planned order, so a first version that is tried again after a crash
gets the same ids. It is trained on ``tokenizer.max_training_bytes`` of text at most, in which every language has the same weight as far as it has
text (tokenizers/balance.py); SCANNED times as much is looked through for them.
"""

import hashlib
import logging
import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from pipelines.ingest.isolation.poison import isolated
from pipelines.ingest.isolation.quarantine import Quarantine, TrainingMark
from pipelines.ingest.portions import in_portions
from pipelines.kafka.reading import Slice, read_slices
from pipelines.kernels.ingest import ensure_compiled
from pipelines.quality.models import model_folder, read_card
from pipelines.steps.pii.ner import check_ner
from pipelines.steps.prepare import clean
from pipelines.tokenizers.balance import Gathered
from pipelines.tokenizers.tokenizer import TOKENIZER_FILE, read_tokenizer, write_tokenizer
from schemas.errors import NotEnoughText, SettingsError, TokenizerMismatch
from schemas.manifest import DatasetManifest, TokenizerRef
from schemas.settings import Settings
from schemas.settings_data import PackingSettings, TokenizerSettings

SCANNED = 4
_log = logging.getLogger(__name__)


def create_tokenizer(parts: Sequence[Slice], settings: Settings, *, min_bytes: int = 0) -> TokenizerRef:
    """Import the tokenizer that the settings name, or train one on the first documents of the slices.

    Raises NotEnoughText if they hold less than ``min_bytes`` of text; then nothing is written.
    """
    root = Path(settings.root).resolve()
    if settings.tokenizer.path:
        return write_tokenizer(root, (), settings.tokenizer).model_copy(update={"requested_vocab_size": None})
    first = first_texts(parts, settings)
    if sum(first.sizes.values()) < min_bytes:
        raise NotEnoughText(_too_little(sum(first.sizes.values()), min_bytes))
    ref, requested = write_tokenizer(root, first.balanced(), settings.tokenizer), settings.tokenizer.vocab_size
    if ref.vocab_size < requested:
        _log.warning(
            "the first batch holds too little text for tokenizer.vocab_size %d: the dataset's tokenizer has %d ids, and keeps them. For a better one "
            "begin with more documents (tokenizer.min_training_bytes, ingest.max_batch_records), or name one with tokenizer.path",
            requested,
            ref.vocab_size,
        )
    return ref.model_copy(update={"requested_vocab_size": requested})


def _too_little(num_bytes: int, min_bytes: int) -> str:
    return (
        f"the documents that wait hold {num_bytes:,} bytes of text that is kept, and tokenizer.min_training_bytes is {min_bytes:,}: too little to "
        "train the tokenizer on, which the dataset keeps for good. Nothing is lost: they stay in the topic. Send more and ingest again; or name a "
        "tokenizer with tokenizer.path; or begin with what is there: --set tokenizer.min_training_bytes=0"
    )


def first_texts(parts: Sequence[Slice], settings: Settings) -> Gathered:
    """Cleaned texts, in the order of the slices; reads no further than SCANNED times what a tokenizer is trained on."""
    ensure_compiled()
    gathered, left = Gathered(settings.tokenizer.max_training_bytes), SCANNED * settings.tokenizer.max_training_bytes
    for cleaned in _cleaned(parts, settings):
        texts = cleaned["text"].combine_chunks()
        languages = cleaned["language"].fill_null("und").filter(texts.is_valid()).to_pylist()
        gathered.add(texts.drop_null().to_pylist(), languages)
        left -= texts.nbytes
        if left <= 0:
            break
    return gathered


def _cleaned(parts: Sequence[Slice], settings: Settings) -> Iterator[pa.Table]:
    step = partial(clean, settings=settings)
    with TrainingMark(Path(settings.root)) as mark, Quarantine(pickle.dumps(step)) as quarantine:
        for records in read_slices(parts, settings):
            yield from in_portions(quarantine if mark.is_suspect(records) else partial(isolated, step), records)


def with_what_is_fixed(newest: DatasetManifest, settings: Settings) -> Settings:
    """The settings, with the dataset's own row length and vocabulary size where the settings are at their defaults.

    A default that a person wrote down cannot be told from one that nobody did.
    """
    packing, tokenizer = settings.packing, settings.tokenizer
    if packing.sequence_length == PackingSettings().sequence_length:
        packing = packing.model_copy(update={"sequence_length": newest.sequence_length})
    if tokenizer.vocab_size == TokenizerSettings().vocab_size and newest.tokenizer.requested_vocab_size is not None:
        tokenizer = tokenizer.model_copy(update={"vocab_size": newest.tokenizer.requested_vocab_size})
    return settings.model_copy(update={"packing": packing, "tokenizer": tokenizer})


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


def check_usable(newest: DatasetManifest | None, settings: Settings) -> None:
    """Check that row length, tokenizer, quality model and pii.ner can be used. Raises SettingsError, TokenizerMismatch, QualityModelCorrupt."""
    if newest is not None:
        check_unchanged(newest, with_what_is_fixed(newest, settings))
    elif settings.tokenizer.path:
        read_tokenizer(Path(settings.tokenizer.path))
    if settings.quality_model.path:
        read_card(model_folder(settings.root, settings.quality_model.path))
    check_ner(settings.pii)


def _mismatch(what: str) -> TokenizerMismatch:
    return TokenizerMismatch(
        f"{what}; set it back, or go on with another tokenizer under another root: `headrace tokenizer switch SHA256 --into NEW_ROOT` takes along "
        "what was ingested so far"
    )
