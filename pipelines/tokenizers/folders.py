"""Tokenizers on disk: those under a root (``<root>/tokenizer/<sha256 of tokenizer.json>/``), and Hugging Face folders elsewhere.

Beside the Hugging Face files of a tokenizer that a person fitted or imported lies CARD_FILE, which says so; the ones that a dataset made itself
have none. Which of them is in use, the manifests of the dataset and of the models say.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field, ValidationError
from tokenizers import pre_tokenizers

from pipelines.storage.durable import replace_durably
from pipelines.storage.store import is_there, names, read_bytes
from pipelines.tokenizers.engine.checked import PROBES
from pipelines.tokenizers.engine.fast import Engine, Unsupported
from pipelines.tokenizers.tokenizer import CONFIG_FILE, SPECIAL_TOKENS_FILE, TOKENIZER_FILE, BatchTokenizer, read_tokenizer, ref_of, write_files
from schemas.errors import SettingsError, TokenizerMismatch
from schemas.manifest import TokenizerRef
from schemas.record import Record
from schemas.settings_data import TokenizerSettings

FOLDER = "tokenizer"
CARD_FILE = "headrace.json"
_FILES = (TOKENIZER_FILE, CONFIG_FILE, SPECIAL_TOKENS_FILE)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{4,64}")


class TokenizerCard(Record):
    """Where a tokenizer came from."""

    origin: Literal["trained", "imported"]
    """``headrace tokenizer fit`` or ``import``."""
    name: str | None = None
    """What a person calls it."""
    created_at: datetime
    """When, UTC."""
    num_documents: int = 0
    """Documents that it was trained on."""
    num_bytes: int = 0
    """Their text in UTF-8."""
    languages: dict[str, int] = Field(default_factory=dict)
    """Bytes of it by language."""


class Opened(NamedTuple):
    """A tokenizer ready for work."""

    files: dict[str, bytes]
    ref: TokenizerRef
    tokenizer: BatchTokenizer


class Encoding(NamedTuple):
    """Which code encodes with a tokenizer."""

    engine: Literal["gigatoken", "huggingface"]
    why: str


class RoundTrip(NamedTuple):
    """Whether texts come back from their ids."""

    probes: int
    lossy: list[tuple[str, str]]
    """Probes that do not, and what comes back."""


def find_tokenizer(root: Path, given: str) -> Path:
    """The folder that a person means: a folder or tokenizer.json, or how the hash of one under the root begins. Raises SettingsError."""
    path = Path(given)
    if (path / TOKENIZER_FILE).is_file():
        return path
    if path.is_file():
        return path.parent
    found = [folder for folder in tokenizer_folders(root) if folder.name.startswith(given)] if _PREFIX.fullmatch(given) else []
    if len(found) != 1:
        raise SettingsError(
            f"{given!r} is no folder with a {TOKENIZER_FILE}, and {len(found)} tokenizers under {root} begin so; `headrace tokenizer list` shows them"
        )
    return found[0]


def tokenizer_folders(root: Path) -> list[Path]:
    """Folders of the tokenizers under the root, sorted by name."""
    found = (root / FOLDER / name for name in names(root / FOLDER) if _SHA256.fullmatch(name))
    return sorted(folder for folder in found if is_there(folder / TOKENIZER_FILE))


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of a tokenizer: of one under a root as they are, of another as Headrace would keep them.

    Raises SettingsError if they cannot be used, TokenizerMismatch if they are not those that the folder's name promises.
    """
    if not _SHA256.fullmatch(folder.name):
        return read_tokenizer(folder)
    missing = [name for name in _FILES if not is_there(folder / name)]
    if missing:
        raise TokenizerMismatch(f"{folder} lacks {', '.join(missing)}; restore it from a copy")
    files = {name: read_bytes(folder / name) for name in _FILES}
    if ref_of(files).sha256 != folder.name:
        raise TokenizerMismatch(f"{folder / TOKENIZER_FILE} has another SHA-256 than its folder's name says; restore it from a copy")
    return files


def open_tokenizer(folder: Path, settings: TokenizerSettings) -> Opened:
    """Read and open a tokenizer."""
    files = read_files(folder)
    ref = ref_of(files)
    return Opened(files, ref, BatchTokenizer(files[TOKENIZER_FILE].decode(), ref, settings))


def keep_tokenizer(root: Path, files: Mapping[str, bytes], card: TokenizerCard, output: Path | None = None) -> TokenizerRef:
    """Write a tokenizer and its card under the root, or into the ``output`` folder; durable, and harmless if it is there already."""
    ref = ref_of(files) if output else write_files(root, files)
    folder = output or root / ref.path
    if output:
        for name, data in files.items():
            replace_durably(folder / name, data)
    if output or not is_there(folder / CARD_FILE):
        replace_durably(folder / CARD_FILE, (card.model_dump_json(indent=1) + "\n").encode())
    return ref


def read_card(folder: Path) -> TokenizerCard | None:
    """Where the tokenizer came from, if a card says so."""
    path = folder / CARD_FILE
    try:
        return TokenizerCard.model_validate_json(read_bytes(path)) if is_there(path) else None
    except ValidationError as error:
        raise SettingsError(f"{path} is not a tokenizer card: {error.errors()[0]['msg']}; remove it") from error


def encoding_of(opened: Opened) -> Encoding:
    """Whether gigatoken knows this tokenizer, and agrees with the tokenizers package on every probe."""
    try:
        Engine(opened.files[TOKENIZER_FILE].decode())
    except Unsupported as error:
        return Encoding("huggingface", str(error))
    if opened.tokenizer.has_engine:
        return Encoding("gigatoken", f"it gave the same ids as the tokenizers package on {len(PROBES)} probes")
    return Encoding("huggingface", "tokenizer.engine asks for it, or gigatoken gave other ids on a probe")


def round_trip(tokenizer: BatchTokenizer) -> RoundTrip:
    """Encode and decode the probes: the traps of Unicode, white space and special tokens."""
    encoded = tokenizer.encode(pa.array(PROBES, pa.large_string()))
    decoded = [tokenizer.decode(np.asarray(encoded[row].values)) for row in range(len(PROBES))]
    return RoundTrip(len(PROBES), [(probe, text) for probe, text in zip(PROBES, decoded, strict=True) if probe != text])


def loses_nothing(tokenizer: BatchTokenizer) -> bool:
    """Whether every text surely comes back from its ids: the tokenizer has no normalizer, keeps every byte, and passes the probes."""
    value = json.loads(tokenizer.tokenizer_json)
    steps = _steps(value.get("pre_tokenizer") or {})
    is_bytewise = steps[-1].get("type") == "ByteLevel" and not any(step.get("add_prefix_space") for step in steps)
    removes_nothing = all(step.get("type") in {"ByteLevel", "Split", "Digits"} and step.get("behavior", "Isolated") != "Removed" for step in steps)
    has_every_byte = set(pre_tokenizers.ByteLevel.alphabet()) <= set(value["model"].get("vocab", ()))
    return value.get("normalizer") is None and is_bytewise and removes_nothing and has_every_byte and not round_trip(tokenizer).lossy


def _steps(pre_tokenizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(pre_tokenizer.get("pretokenizers", [pre_tokenizer]))


def with_special_tokens(files: Mapping[str, bytes], eos: str | None, pad: str | None) -> dict[str, bytes]:
    """The configuration of a foreign tokenizer, naming these tokens: for a bare tokenizer.json, whose own files do not say."""
    config = json.loads(files.get(CONFIG_FILE, b"{}"))
    given = {name: token for name, token in (("eos_token", eos), ("pad_token", pad)) if token is not None}
    return {**files, CONFIG_FILE: json.dumps(config | given, ensure_ascii=False).encode()}
