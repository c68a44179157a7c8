"""Memory of the built-in engine over many hostile requests: texts of megabytes, odd shapes, abandoned answers, stop strings, many choices.

Prints one JSON line per step of requests: how many, the resident set of the process, what came of them. A last line says how much the resident
set grew after the first tenth, in which every path has run. Random weights: memory does not depend on what they say.
    python benchmarks/engine_memory.py [--requests 100000] [--every 5000] [--concurrency 24]
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

from ray_apps.serving.engine.interface import Failure, GenerationRequest, Message, Sampling
from ray_apps.serving.engine.torch_engine import TorchEngine
from schemas.settings import ServingSettings

WORDS = ("mill", "water", "水渠", "数据流", "😀", "zq7", "<|endoftext|>", "\nassistant: ", "\u0301", " ", "\x00", "ﷺ")
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
HUGE_BYTES = 4 << 20
ABANDONED, HUGE, MANY, CHAT, IDS = 0.1, 0.005, 0.05, 0.2, 0.1
"""Shares of the requests."""


def text(rng: random.Random, size_bytes: int) -> str:
    """Words, or one of them again and again."""
    some = [rng.choice(WORDS)] if rng.random() < 0.5 else rng.choices(WORDS, k=50)
    piece = "".join(some)
    return piece * max(1, size_bytes // len(piece.encode()))


def request(rng: random.Random, number: int) -> GenerationRequest:
    """One of many kinds, at random."""
    size_bytes = HUGE_BYTES if rng.random() < HUGE else int(2 ** rng.uniform(0, 11))
    stop = tuple(text(rng, 2 ** rng.randrange(8))[:256] for _ in range(rng.randrange(5)))
    sampling = Sampling(
        max_tokens=rng.randrange(1, 4),
        temperature=rng.choice((0, 1)),
        top_p=rng.choice((1, 0.9)),
        stop=stop,
        seed=number,
        presence_penalty=rng.random(),
    )
    kind = rng.random()
    if kind < CHAT:
        messages = tuple(Message(rng.choice(("user", "assistant", "system")), text(rng, size_bytes)) for _ in range(rng.randrange(1, 4)))
        return GenerationRequest(id=str(number), messages=messages, sampling=sampling)
    if kind < CHAT + IDS:
        return GenerationRequest(
            id=str(number), prompts=(tuple(rng.randrange(600) for _ in range(int(2 ** rng.uniform(0, 9.8)))),), sampling=sampling
        )
    prompts = tuple(text(rng, size_bytes) for _ in range(rng.randrange(1, 9) if kind > 1 - MANY else 1))
    return GenerationRequest(id=str(number), prompts=prompts, num_choices=rng.choice((1, 1, 1, 2)), sampling=sampling)


async def ask(engine: TorchEngine, rng: random.Random, number: int) -> str:
    """Send one request; what came of it."""
    gives_up = rng.random() < ABANDONED
    async with aclosing(cast("Any", engine.submit(request(rng, number)))) as answer:
        async for events in answer:
            if isinstance(events, Failure):
                return str(events.code)
            if gives_up:
                return "abandoned"
    return "answered"


async def soak(engine: TorchEngine, num_requests: int, every: int, concurrency: int) -> None:
    """Ask, and print the memory."""
    rng, outcomes, begin_s, sizes = random.Random(1), Counter[str](), time.perf_counter(), []
    numbers = iter(range(num_requests))

    async def client() -> None:
        for number in numbers:
            outcomes[await ask(engine, rng, number)] += 1
            if (number + 1) % every == 0:
                sizes.append((number + 1, resident_mb()))
                row = {"requests": number + 1, "rss_mb": sizes[-1][1], "seconds": round(time.perf_counter() - begin_s, 1), **outcomes}
                print(json.dumps(row), flush=True)

    await asyncio.gather(*[client() for _ in range(concurrency)])
    warm = next(size for number, size in sizes if number >= num_requests // 10)
    print(json.dumps({"what": "growth after the first tenth", "rss_mb_then": warm, "rss_mb_max": max(size for _, size in sizes)}))


def resident_mb() -> int:
    """Resident set of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


def main() -> None:
    """Print one JSON line per step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=5_000)
    parser.add_argument("--concurrency", type=int, default=24)
    args = parser.parse_args()
    sys.path.append(str(Path(__file__).parents[1]))  # the tests' model factory is not part of the installed package
    from tests.model_factory import make_model

    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name), context=1024, shape=SHAPE)
        print(json.dumps({"requests": 0, "rss_mb": resident_mb(), "what": "before the engine"}))
        engine = TorchEngine(Path(name) / "models" / "00000001", ServingSettings())
        print(json.dumps({"requests": 0, "rss_mb": resident_mb(), "what": "engine loaded"}))
        asyncio.run(soak(engine, args.requests, args.every, args.concurrency))
        engine.close()


if __name__ == "__main__":
    main()
