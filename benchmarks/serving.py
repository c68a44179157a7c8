"""Decoding speed of the built-in engine at 1, 8 and 32 requests at once, beside transformers' generate one request after another.

Same weights, prompts, number of tokens and threads, in one run. Random weights: speed does not depend on what they say.
    python benchmarks/serving.py [--tokens 64] [--threads 1] [--shape small]
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ray_apps.serving.engine.interface import GenerationRequest, Sampling
from ray_apps.serving.engine.torch_engine import TorchEngine
from schemas.settings import ServingSettings

SHAPES = {
    "nano": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4},
    "small": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4},
}
CONCURRENCIES = (1, 8, 32)
PROMPT = "A headrace is the channel that carries water to a mill. 水渠把水引到磨坊。"


def sequential(folder: Path, num_requests: int, num_tokens: int) -> float:
    """Tokens per second of generate, one request at a time."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(PROMPT, return_tensors="pt").input_ids
    options = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}
    model.generate(inputs, **options)
    begin_s = time.perf_counter()
    for _ in range(num_requests):
        model.generate(inputs, **options)
    return num_requests * num_tokens / (time.perf_counter() - begin_s)


async def concurrent(engine: TorchEngine, num_requests: int, num_tokens: int) -> tuple[float, float]:
    """Tokens per second of the engine, and the median time to the first token in seconds."""
    sampling = Sampling(max_tokens=num_tokens, temperature=0, ignore_eos=True)

    async def one(number: int) -> float:
        begin_s, first_s = time.perf_counter(), 0.0
        async for _ in engine.submit(GenerationRequest(id=f"{num_requests}/{number}", prompts=(PROMPT,), sampling=sampling)):
            first_s = first_s or time.perf_counter() - begin_s
        return first_s

    begin_s = time.perf_counter()
    firsts = sorted(await asyncio.gather(*[one(number) for number in range(num_requests)]))
    return num_requests * num_tokens / (time.perf_counter() - begin_s), firsts[len(firsts) // 2]


def main() -> None:
    """Print one JSON line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    args = parser.parse_args()
    sys.path.append(str(Path(__file__).parents[1]))  # the tests' model factory is not part of the installed package
    from tests.model_factory import make_model

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        manifest = make_model(Path(name), context=512, shape=SHAPES[args.shape])
        folder = Path(name) / "models" / "00000001"
        common = {"parameters": manifest.num_parameters, "threads": args.threads, "tokens": args.tokens}
        print(json.dumps({"what": "transformers generate, sequential", **common, "tokens_per_s": round(sequential(folder, 3, args.tokens), 1)}))
        settings = ServingSettings(max_concurrent_sequences=max(CONCURRENCIES), threads_per_engine=args.threads)
        engine = TorchEngine(folder, settings)
        asyncio.run(concurrent(engine, 2, 4))
        for concurrency in CONCURRENCIES:
            speed, first_s = asyncio.run(concurrent(engine, concurrency, args.tokens))
            row = {"what": "engine", "concurrency": concurrency, **common, "tokens_per_s": round(speed, 1), "median_first_token_s": round(first_s, 4)}
            print(json.dumps(row))
        engine.close()


if __name__ == "__main__":
    main()
