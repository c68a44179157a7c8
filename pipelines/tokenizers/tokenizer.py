"""Byte-level BPE: trained on the stream's own first documents, or a given Hugging Face tokenizer; HF files are the format of both.

Invariants: the same texts and settings give byte-identical files on every run (the trainer breaks ties by token id, and ids follow from
counts alone); for a trained tokenizer ``decode(encode(text)) == text`` for all Unicode text; what a document says never becomes a
special token: ``<|endoftext|>`` inside a text is encoded as the thirteen characters that it is.

Cost on one core: training 2.4 MB/s; encoding 65 MB/s and, once it knows the words, 190 MB/s with gigatoken (engine/, checked against the
tokenizers package while it works), 2 MB/s for tokenizers that it does not know. Source: Sennrich et al. 2016, Radford et al. 2019.
Words never cross the borders between CJK runs, other letters, numbers of up to three digits, and punctuation, so that merges learnt in
prose hold in code and next to Chinese. Datasets that began before SPLITS have an expression of their own, which gigatoken does not know.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pipelines.storage.durable import replace_durably, sha256_file
from pipelines.storage.store import local, refetch
from pipelines.tokenizers.engine.checked import CheckedEngine, open_checked
from pipelines.tokenizers.engine.reference import Reference, Tokens, parallelism
from schemas.arrow import token_type
from schemas.errors import SettingsError, TokenizerMismatch
from schemas.manifest import TokenizerRef
from schemas.settings_data import TokenizerSettings

END_OF_TEXT = "<|endoftext|>"
"""Id 0: ends every document."""
PADDING = "<|pad|>"
"""Id 1: fills the last row of a shard."""
TURN_BEGIN = "<|im_start|>"
"""Id 2: begins a turn of a chat; the role follows. The markers are those of ChatML, which other servers know."""
TURN_END = "<|im_end|>"
"""Id 3: ends a turn of a chat, and an answer."""
SPECIAL_TOKENS = (END_OF_TEXT, PADDING, TURN_BEGIN, TURN_END)
"""Of the tokenizers that are trained here, in the order of their ids. No text makes one."""
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{{{{ '{TURN_BEGIN}' + message['role'] + '\\n' + message['content'] + '{TURN_END}\\n' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{TURN_BEGIN}assistant\\n' }}}}{{% endif %}}"
)
"""For tokenizers that are trained here: turns stand between special tokens."""
PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
"""For tokenizers that bring no template and no special tokens for one: plain ``role: content`` lines; the model goes on after ``assistant:``.
The engine quotes lines of a content that look like such a one (ray_apps/serving/engine/chat_template.py)."""

SPLITS = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
    r"|\s*"
    "[\r\n]+"
    r"|\s+(?!\S)|\s+",
)
"""What merges may not cross, one expression (Oniguruma) after the other: those of DeepSeek-V3, letter by letter, which gigatoken knows."""
_MIN_FREQUENCY = 2
_MAX_TOKEN_BYTES = 48
"""A line of dashes is no word worth an id."""


def train_tokenizer(texts: Iterable[str], settings: TokenizerSettings) -> dict[str, bytes]:
    """Train on the texts, in their order, up to ``max_training_bytes``; returns the folder's files by name.

    Few texts give fewer ids than ``vocab_size``, never fewer than 260: four special tokens and every byte.
    """
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in SPLITS]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_MAX_TOKEN_BYTES,
        show_progress=False,
    )
    with parallelism(enabled=True):
        tokenizer.train_from_iterator(_first_bytes(texts, settings.max_training_bytes), trainer)
    return _files(tokenizer.to_str(pretty=True).encode(), _own_config())


def write_tokenizer(root: Path, texts: Iterable[str], settings: TokenizerSettings) -> TokenizerRef:
    """Write ``<root>/tokenizer/<sha256 of tokenizer.json>/``, trained on ``texts`` or, with ``settings.path``, imported; durable.

    Writing the same tokenizer twice is harmless. Raises SettingsError if the given folder holds no usable tokenizer.
    """
    return write_files(root, read_tokenizer(Path(settings.path)) if settings.path else train_tokenizer(texts, settings))


def write_files(root: Path, files: Mapping[str, bytes]) -> TokenizerRef:
    """Write the files of a tokenizer under the root, durably."""
    ref = ref_of(files)
    for name, data in files.items():
        replace_durably(root / ref.path / name, data)
    return ref


def ref_of(files: Mapping[str, bytes]) -> TokenizerRef:
    """What a manifest says about the tokenizer with these files."""
    sha256 = hashlib.sha256(files[TOKENIZER_FILE]).hexdigest()
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
    template = config.get("chat_template") or _read_template(folder) or PLAIN_CHAT_TEMPLATE
    return _files(tokenizer.to_str(pretty=True).encode(), config | {"eos_token": eos, "pad_token": pad, "chat_template": template})


def load_tokenizer(root: Path, ref: TokenizerRef, settings: TokenizerSettings | None = None) -> "BatchTokenizer":
    """The tokenizer that a manifest names; ``settings`` choose its engine.

    Raises TokenizerMismatch if its file is missing or is not the one that made the ids.
    """
    path = root / ref.path / TOKENIZER_FILE
    try:
        sha256 = sha256_file(local(path))
    except FileNotFoundError as error:
        raise TokenizerMismatch(f"the tokenizer {path} is missing; restore it from a copy of the dataset") from error
    if sha256 != ref.sha256 and refetch(path):
        sha256 = sha256_file(path)
    if sha256 != ref.sha256:
        raise TokenizerMismatch(f"the tokenizer {path} has SHA-256 {sha256}, the manifest says {ref.sha256}: restore the file")
    return BatchTokenizer(path.read_text("utf-8"), ref, settings)


class BatchTokenizer:
    """Text to token ids and back, whole Arrow arrays at a time, on one thread (Ray runs one task per core). Not to be shared by threads."""

    def __init__(self, tokenizer_json: str, ref: TokenizerRef, settings: TokenizerSettings | None = None) -> None:
        settings = settings or TokenizerSettings()
        self.tokenizer_json = tokenizer_json
        self._reference = Reference(tokenizer_json)
        self._open = partial(open_checked, tokenizer_json, self._reference, ref.sha256, settings.check_fraction)
        self._is_open = settings.engine == "huggingface"
        self._engine: CheckedEngine | None = None
        self.vocab_size = ref.vocab_size
        self.eos_token_id = ref.eos_token_id
        self.pad_token_id = ref.pad_token_id
        self.token_type = token_type(ref.vocab_size)

    def encode(self, texts: pa.Array, doc_ids: pa.Array | None = None) -> pa.LargeListArray:
        """The ids of each text of a ``string`` or ``large_string`` array, without special tokens; a null has none.

        ``doc_ids`` are for the warning that names a document on which the engines differ.
        """
        tokens = self._fast(texts, doc_ids) or self._reference.encode(texts, self.token_type.to_pandas_dtype())
        return pa.LargeListArray.from_arrays(pa.array(tokens.offsets), pa.array(tokens.ids))

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """The text of these ids; special tokens are written out. Bytes that are not UTF-8 become U+FFFD."""
        return self._reference.decode(np.asarray(ids, np.int64).tolist())

    @property
    def has_engine(self) -> bool:
        """Whether texts are encoded by the fast engine."""
        if not self._is_open:
            self._is_open, self._engine = True, self._open()
        return self._engine is not None

    def _fast(self, texts: pa.Array, doc_ids: pa.Array | None) -> Tokens | None:
        if not self.has_engine:
            return None
        assert self._engine is not None
        tokens = self._engine.encode(texts, self.token_type.to_pandas_dtype(), doc_ids)
        if tokens is None:
            self._engine = None
        return tokens


def _first_bytes(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """The texts up to a total of ``max_bytes`` in UTF-8; the one that crosses the limit is cut (never inside a character)."""
    left = max_bytes
    for text in texts:
        data = text.encode()
        yield text if len(data) <= left else data[:left].decode("utf-8", "ignore")
        left -= len(data)
        if left <= 0:
            return


def _own_config() -> dict[str, Any]:
    tokens = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PADDING}
    return tokens | {
        "additional_special_tokens": [TURN_BEGIN, TURN_END],
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
