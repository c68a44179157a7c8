"""Byte-level BPE: trained on the stream's own first documents, or a given Hugging Face tokenizer; HF files are the format of both.

Invariants: the same texts and settings give byte-identical files on every run (the trainer breaks ties by token id, and ids follow from
counts alone); for a trained tokenizer ``decode(encode(text)) == text`` for all Unicode text; what a document says never becomes a
special token: ``<|endoftext|>`` inside a text is encoded as the thirteen characters that it is.

Cost: training 2.4 MB/s, encoding 2.7 MB/s on one core (16k vocabulary, 2-core machine). Source: Sennrich et al. 2016, Radford et al. 2019.
Words never cross the borders between CJK runs, other letters, numbers of up to three digits, and punctuation, so that merges learnt in
prose hold in code and next to Chinese.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pipelines.dataset.durable import replace_durably, sha256_file
from schemas.arrow import token_type
from schemas.errors import SettingsError, TokenizerMismatch
from schemas.manifest import TokenizerRef
from schemas.settings_data import TokenizerSettings

END_OF_TEXT = "<|endoftext|>"
"""Id 0: ends every document."""
PADDING = "<|pad|>"
"""Id 1: fills the last row of a shard."""
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
"""Plain ``role: content`` lines; the model goes on after ``assistant:``."""

_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}\u30FC"
WORDS = (
    r"'(?i:[sdmt]|ll|ve|re)"  # English contractions
    rf"|[{_CJK}]+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?(?:(?![{_CJK}])[\p{{L}}\p{{M}}])+"  # letters and marks of other scripts, with the space before them
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Regular expression (Oniguruma) of what merges may not cross; it matches every character of every text."""
_MIN_FREQUENCY = 2
_MAX_TOKEN_BYTES = 48
"""A line of dashes is no word worth an id."""
_ENCODE_CHARS = 1 << 18
"""Characters (and at least one document) per call into the tokenizer: bounds the memory that its encodings take, up to 200 times the text."""


def train_tokenizer(texts: Iterable[str], settings: TokenizerSettings) -> dict[str, bytes]:
    """Train on the texts, in their order, up to ``max_training_bytes``; returns the folder's files by name.

    Few texts give fewer ids than ``vocab_size``, never fewer than 258: two special tokens and every byte.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_MAX_TOKEN_BYTES,
        show_progress=False,
    )
    with _parallelism(enabled=True):
        tokenizer.train_from_iterator(_first_bytes(texts, settings.max_training_bytes), trainer)
    return _files(tokenizer.to_str(pretty=True).encode(), _own_config())


def write_tokenizer(root: Path, texts: Iterable[str], settings: TokenizerSettings) -> TokenizerRef:
    """Write ``<root>/tokenizer/<sha256 of tokenizer.json>/``, trained on ``texts`` or, with ``settings.path``, imported; durable.

    Writing the same tokenizer twice is harmless. Raises SettingsError if the given folder holds no usable tokenizer.
    """
    files = read_tokenizer(Path(settings.path)) if settings.path else train_tokenizer(texts, settings)
    sha256 = hashlib.sha256(files[TOKENIZER_FILE]).hexdigest()
    folder = root / "tokenizer" / sha256
    for name, data in files.items():
        replace_durably(folder / name, data)
    tokenizer = Tokenizer.from_str(files[TOKENIZER_FILE].decode())
    config = json.loads(files[CONFIG_FILE])
    return TokenizerRef(
        sha256=sha256,
        path=f"tokenizer/{sha256}",
        vocab_size=_num_ids(tokenizer),
        eos_token_id=tokenizer.token_to_id(config["eos_token"]),
        pad_token_id=tokenizer.token_to_id(config["pad_token"]),
    )


def read_tokenizer(folder: Path) -> dict[str, bytes]:
    """The files of a Hugging Face tokenizer as Headrace keeps them: with an end-of-text token, a pad token and a chat template.

    A tokenizer without a pad token pads with its end-of-text token. Raises SettingsError if there is no tokenizer.json or no such token.
    """
    config = _read_json(folder / SPECIAL_TOKENS_FILE) | _read_json(folder / CONFIG_FILE)
    try:
        tokenizer = Tokenizer.from_str((folder / TOKENIZER_FILE).read_text("utf-8"))
    except Exception as error:  # the tokenizers package raises bare Exception for a file that it cannot parse
        raise SettingsError(f"tokenizer.path is {str(folder)!r}, but its {TOKENIZER_FILE} cannot be used: {error}") from error
    eos = _token_text(config.get("eos_token"))
    if eos is None or tokenizer.token_to_id(eos) is None:
        raise SettingsError(f"tokenizer.path is {str(folder)!r}: its {CONFIG_FILE} names no eos_token of its vocabulary ({eos!r}); add one")
    pad = _token_text(config.get("pad_token"))
    if pad is None or tokenizer.token_to_id(pad) is None:
        pad = eos
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.add_special_tokens([eos, pad])
    template = config.get("chat_template") or _read_template(folder) or CHAT_TEMPLATE
    return _files(tokenizer.to_str(pretty=True).encode(), config | {"eos_token": eos, "pad_token": pad, "chat_template": template})


def load_tokenizer(root: Path, ref: TokenizerRef) -> "BatchTokenizer":
    """The tokenizer that a manifest names. Raises TokenizerMismatch if its file is missing or is not the one that made the ids."""
    path = root / ref.path / TOKENIZER_FILE
    if not path.is_file():
        raise TokenizerMismatch(f"the tokenizer {path} is missing; restore it from a copy of the dataset")
    sha256 = sha256_file(path)
    if sha256 != ref.sha256:
        raise TokenizerMismatch(f"the tokenizer {path} has SHA-256 {sha256}, the manifest says {ref.sha256}: restore the file")
    return BatchTokenizer(path.read_text("utf-8"), ref)


class BatchTokenizer:
    """Text to token ids and back, whole Arrow arrays at a time, on one thread (Ray runs one task per core)."""

    def __init__(self, tokenizer_json: str, ref: TokenizerRef) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.encode_special_tokens = True  # as plain text, that is: a document cannot forge the end of a document
        self.vocab_size = ref.vocab_size
        self.eos_token_id = ref.eos_token_id
        self.pad_token_id = ref.pad_token_id
        self.token_type = token_type(ref.vocab_size)

    def encode(self, texts: pa.Array) -> pa.LargeListArray:
        """The ids of each text of a ``string`` or ``large_string`` array, without special tokens; a null has none."""
        dtype = self.token_type.to_pandas_dtype()
        parts: list[npt.NDArray[Any]] = []
        lengths: list[int] = []
        with _parallelism(enabled=False):
            for batch in _bounded(texts):
                encodings = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
                parts += [np.array(encoding.ids, dtype) for encoding in encodings]
                lengths += [len(encoding) for encoding in encodings]
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate([np.zeros(0, dtype), *parts])))

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """The text of these ids; special tokens are written out. Bytes that are not UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(np.asarray(ids, np.int64).tolist(), skip_special_tokens=False))


def _bounded(texts: pa.Array) -> Iterator[list[str]]:
    """Consecutive texts of together about _ENCODE_CHARS characters; one longer text stands alone."""
    batch: list[str] = []
    num_chars = 0
    for scalar in texts:
        text = scalar.as_py() or ""
        if batch and num_chars + len(text) > _ENCODE_CHARS:
            yield batch
            batch, num_chars = [], 0
        batch.append(text)
        num_chars += len(text)
    if batch:
        yield batch


def _first_bytes(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """The texts up to a total of ``max_bytes`` in UTF-8; the one that crosses the limit is cut (never inside a character)."""
    left = max_bytes
    for text in texts:
        data = text.encode()
        yield text if len(data) <= left else data[:left].decode("utf-8", "ignore")
        left -= len(data)
        if left <= 0:
            return


@contextmanager
def _parallelism(*, enabled: bool) -> Iterator[None]:
    """Whether the tokenizers package uses all cores; it reads this variable at each call. A value set by the user stays."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ.setdefault(name, "true" if enabled else "false")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


def _own_config() -> dict[str, Any]:
    tokens = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PADDING}
    return tokens | {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_048_576,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }


def _files(tokenizer_json: bytes, config: Mapping[str, Any]) -> dict[str, bytes]:
    special = {name: _token_text(config[name]) for name in ("bos_token", "eos_token", "pad_token", "unk_token") if config.get(name)}
    return {TOKENIZER_FILE: tokenizer_json, CONFIG_FILE: _json_bytes(config), SPECIAL_TOKENS_FILE: _json_bytes(special)}


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise SettingsError(f"tokenizer.path: {path} is not JSON in UTF-8: {error}") from error
    return value if isinstance(value, dict) else {}


def _read_template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    return path.read_text("utf-8") if path.is_file() else None


def _token_text(token: Any) -> str | None:
    """Hugging Face writes a token as a string, or as an object with its ``content``."""
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None


def _num_ids(tokenizer: Tokenizer) -> int:
    """One more than the largest id: some vocabularies have holes."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
