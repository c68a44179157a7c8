"""Tokenization beside the tokenizers package's ``encode_batch_fast``: the same tokenizer, the same documents, the ids compared.

Cold: documents that the engine sees for the first time, nothing remembered but the probes. Warm: the same documents again. The tokenizer is trained
on other documents than those that are encoded. Checks while it works (``tokenizer.check_fraction``) are part of the time.

python -m benchmarks.tokenizer [--documents 4000] [--vocab-size 16384]
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.corpus import CORPUS, num_megabytes, read_documents
from pipelines.tokenizers.tokenizer import TOKENIZER_FILE, BatchTokenizer, train_tokenizer
from schemas.manifest import TokenizerRef
from schemas.settings_data import TokenizerSettings

GOAL = 10
BATCH = 500
"""Documents per call, as in an ingest."""
STEP = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--vocab-size", type=int, default=16384)
    args = parser.parse_args()
    trained_on = read_documents(args.corpus, number=args.documents, step=STEP)
    documents = read_documents(args.corpus, first=STEP // 2, number=args.documents, step=STEP)
    texts, size_mb = [document["text"] for document in documents], num_megabytes(documents)
    tokenizer_json = train_tokenizer((document["text"] for document in trained_on), TokenizerSettings(vocab_size=args.vocab_size))[
        TOKENIZER_FILE
    ].decode()
    theirs = opened(tokenizer_json, "huggingface")
    reference, seconds = encode(theirs, texts)
    print(f"{'encode_batch_fast':20} {size_mb / seconds:7.1f} MB/s of CPU, {len(reference):,} ids of {size_mb:.1f} MB")
    ours = opened(tokenizer_json, "auto")
    print(f"engine: {'gigatoken' if ours.has_engine else 'the tokenizers package'}")
    for name in ("cold", "warm"):
        ids, own_s = encode(ours, texts)
        verdict = "equal" if np.array_equal(ids, reference) else "NOT EQUAL"
        print(f"{'headrace, ' + name:20} {size_mb / own_s:7.1f} MB/s of CPU: {seconds / own_s:.1f} times; ids are {verdict}")
    print(f"goal: {GOAL} times, cold")


def opened(tokenizer_json: str, engine: str) -> BatchTokenizer:
    """The tokenizer with one engine."""
    sha256, vocab_size = hashlib.sha256(tokenizer_json.encode()).hexdigest(), len(json.loads(tokenizer_json)["model"]["vocab"])
    ref = TokenizerRef(sha256=sha256, path=f"tokenizer/{sha256}", vocab_size=vocab_size, eos_token_id=0, pad_token_id=1)
    return BatchTokenizer(tokenizer_json, ref, TokenizerSettings.model_validate({"engine": engine}))


def encode(tokenizer: BatchTokenizer, texts: list[str]) -> tuple["np.ndarray[tuple[int], np.dtype[np.uint32]]", float]:
    """All ids, and the seconds of CPU that they took."""
    batches = [pa.array(texts[first : first + BATCH], pa.large_string()) for first in range(0, len(texts), BATCH)]
    start = time.process_time()
    encoded = [tokenizer.encode(batch) for batch in batches]
    seconds = time.process_time() - start
    return np.concatenate([batch.values.to_numpy() for batch in encoded]).astype(np.uint32), seconds


if __name__ == "__main__":
    main()
