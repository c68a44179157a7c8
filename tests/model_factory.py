"""A tiny but real model version on disk: a byte-level BPE, random Llama weights, and a manifest, laid out as the registry does.

``make_model(root, version=1)`` takes about a tenth of a second once torch is imported. The same arguments give the same bytes of weights.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.storage.commit_log import CommitLog
from pipelines.storage.durable import sha256_file
from schemas.manifest import DatasetRef, Evaluation, FileEntry, ModelManifest, TokenizerRef, TrainingSummary

EOS, PAD = "<|endoftext|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
TEXTS = (
    "A headrace is the channel that carries water to a mill. The mill grinds the grain, and the water flows on.",
    "Streams become datasets, datasets become models, and models answer questions about the stream.",
    "水渠把水引到磨坊。数据流进来，模型流出去。你好，世界！今天天气很好，我们一起去河边看水车。",
    "Emoji are text too: 😀 🚀 🌊, and so are accents: café, naïve, Zürich.",
)
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def make_tokenizer(folder: Path, vocab_size: int = 512) -> TokenizerRef:
    """Train a byte-level BPE on a few sentences and save it as Hugging Face files; ids 0 and 1 are end of text and padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS, PAD], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "pad_token": PAD, "chat_template": CHAT_TEMPLATE}
    config |= {"clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    sha256 = sha256_file(folder / "tokenizer.json")
    return TokenizerRef(sha256=sha256, path=f"tokenizer/{sha256}", vocab_size=tokenizer.get_vocab_size(), eos_token_id=0, pad_token_id=1)


def make_weights(folder: Path, *, vocab_size: int, seed: int, context: int, shape: dict[str, int]) -> int:
    """Save a Llama with random weights; returns the number of parameters. The spread is wide enough that greedy choices are not near-ties."""
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = LlamaConfig.from_dict({"vocab_size": vocab_size, "max_position_embeddings": context, "initializer_range": 0.25} | special | shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def make_model(
    root: Path, *, version: int = 1, seed: int = 0, context: int = 256, loss: float = 3.0, shape: dict[str, int] | None = None
) -> ModelManifest:
    """Register model ``version`` under ``root``: ``models/<version>/`` and its entry in ``models/log``. Versions are made in order from 1."""
    folder = root / "models" / f"{version:08d}"
    tokenizer = make_tokenizer(folder)
    num_parameters = make_weights(folder, vocab_size=tokenizer.vocab_size, seed=seed, context=context, shape=shape or TINY)
    files = [
        FileEntry(path=path.relative_to(root).as_posix(), rows=0, size_bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in sorted(folder.iterdir())
    ]
    digest = hashlib.sha256(b"a dataset that this test never reads").hexdigest()
    manifest = ModelManifest(
        version=version,
        created_at=datetime.now(UTC),
        files=files,
        architecture="LlamaForCausalLM",
        num_parameters=num_parameters,
        dataset=DatasetRef(version=version, manifest_sha256=digest, offsets={}, num_train_tokens=0),
        tokenizer=tokenizer,
        training=TrainingSummary(run_id=f"run-{version}", steps=0, tokens=0, first_loss=loss, last_loss=loss, duration_s=0.0, num_workers=1),
        evaluation=Evaluation(dataset_version=version, loss=loss, perplexity=2.718281828**loss, num_tokens=1),
        settings_fingerprint=digest,
        code_version="test",
    )
    CommitLog(root / "models" / "log").publish(version, manifest.model_dump_json(indent=2).encode())
    return manifest
