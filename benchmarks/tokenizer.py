"""Tokenization beside the tokenizers package's ``encode_batch_fast``: the same tokenizer, the same documents, the ids compared.

python -m benchmarks.tokenizer [--documents 4000] [--vocab-size 16384]
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.corpus import CORPUS, num_megabytes, read_documents
from pipelines.tokenizers.tokenizer import BatchTokenizer, train_tokenizer
from schemas.manifest import TokenizerRef
from schemas.settings_data import TokenizerSettings

GOAL = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--vocab-size", type=int, default=16384)
    args = parser.parse_args()
    documents = read_documents(args.corpus, number=args.documents, step=20)
    texts = [document["text"] for document in documents]
    tokenizer_json = train_tokenizer(texts, TokenizerSettings(vocab_size=args.vocab_size))["tokenizer.json"].decode()
    vocab_size = len(json.loads(tokenizer_json)["model"]["vocab"])
    ref = TokenizerRef(sha256=hashlib.sha256(tokenizer_json.encode()).hexdigest(), path="", vocab_size=vocab_size, eos_token_id=0, pad_token_id=1)
    results: dict[str, Any] = {}
    for engine in ("auto", "huggingface"):
        tokenizer = BatchTokenizer(tokenizer_json, ref, TokenizerSettings.model_validate({"engine": engine}))
        tokenizer.encode(pa.array(["compile and probe"]))
        start = time.process_time()
        results[engine] = tokenizer.encode(pa.array(texts, pa.large_string()))
        seconds = time.process_time() - start
        print(f"{engine:12} {num_megabytes(documents) / seconds:7.1f} MB/s of CPU, {len(results[engine].values):,} ids")
        results[engine + " s"] = seconds
    is_equal = np.array_equal(results["auto"].values.to_numpy(), results["huggingface"].values.to_numpy())
    ratio = results["huggingface s"] / results["auto s"]
    print(f"headrace / encode_batch_fast: {ratio:.1f} times (goal {GOAL}); ids are {'equal' if is_equal else 'NOT EQUAL'}")


if __name__ == "__main__":
    main()
