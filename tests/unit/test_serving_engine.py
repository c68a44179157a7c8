"""The built-in engine against transformers' generate, and what it promises about batches, stops, queues and cancellation."""

import asyncio
import codecs
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ray_apps.serving.engine import torch_engine
from ray_apps.serving.engine.batch import PREFILL_TOKENS
from ray_apps.serving.engine.heartbeat import Heartbeat
from ray_apps.serving.engine.interface import Events, Failure, FinishReason, GenerationRequest, Message, Sampling, Timing
from ray_apps.serving.engine.llama import load_llama
from ray_apps.serving.engine.torch_engine import TorchEngine
from schemas.errors import RegistryError
from schemas.settings import ServingSettings
from tests.model_factory import TINY, make_model
from tests.serving_harness import ask, generate, until

NEAR_TIE = 1e-3
"""Logits closer than this may change places between two correct implementations."""
PROMPTS = ("水渠把水引到磨坊。", "A headrace is", "x", "Emoji 😀 are text too, and so are " * 6, "The mill grinds the grain", "你好，世界", "Zürich")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("engine")
    make_model(root, context=512)
    return root / "models" / "00000001"


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TorchEngine]:
    engine = TorchEngine(folder, ServingSettings(max_concurrent_sequences=4, max_queued_requests=60, max_completion_tokens=400))
    yield engine
    engine.close()
    assert not engine.is_alive


class Reference:
    """transformers' own greedy decoding."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder)

    def greedy(self, prompt: str, num_tokens: int) -> list[int]:
        input_ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        output = self.model.generate(input_ids, max_new_tokens=num_tokens, do_sample=False)
        return cast("list[int]", output[0, input_ids.shape[1] :].tolist())

    def assert_same(self, prompt: str, ours: list[int], num_tokens: int) -> None:
        """Equal, or different from the first near-tie on."""
        theirs = self.greedy(prompt, num_tokens)
        if ours == theirs:
            return
        at = next(index for index, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
        prefix = self.tokenizer(prompt, return_tensors="pt").input_ids[0].tolist() + theirs[:at]
        with torch.inference_mode():
            logits = self.model(torch.tensor([prefix])).logits[0, -1]
        assert abs(float(logits[ours[at]] - logits[theirs[at]])) < NEAR_TIE, f"token {at} of {prompt!r}: {ours} against {theirs}"


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


async def events_of(engine: TorchEngine, request: GenerationRequest) -> list[Events]:
    return [events async for events in engine.submit(request)]


def ends(answer: list[Events]) -> list[FinishReason]:
    """Finish reasons that were told."""
    return [chunk.finish_reason for events in answer if isinstance(events, tuple) for chunk in events if chunk.finish_reason]


def test_greedy_answers_equal_transformers_in_a_changing_batch(engine: TorchEngine, reference: Reference) -> None:
    async def main() -> list[list[int]]:
        work = [generate(engine, ask(f"g{i}", prompt, max_tokens=10 + 7 * i)) for i, prompt in enumerate(PROMPTS)]
        return [ids[0] for _, ids, _ in await asyncio.gather(*work)]

    for i, (prompt, ours) in enumerate(zip(PROMPTS, asyncio.run(main()), strict=True)):
        reference.assert_same(prompt, ours, 10 + 7 * i)


def test_a_prompt_longer_than_one_step_is_computed_in_pieces_and_equals_transformers(engine: TorchEngine, reference: Reference) -> None:
    long = "zq7" * 130
    assert PREFILL_TOKENS < len(reference.tokenizer(long).input_ids) < 490

    async def main() -> list[list[int]]:
        work = [generate(engine, ask(name, prompt, max_tokens=20)) for name, prompt in (("a", "x"), ("long", long), ("b", "Zürich"), ("c", long))]
        return [ids[0] for _, ids, _ in await asyncio.gather(*work)]

    x, first, zurich, second = asyncio.run(main())
    reference.assert_same("x", x, 20)
    reference.assert_same(long, first, 20)
    reference.assert_same("Zürich", zurich, 20)
    assert first == second


@pytest.mark.parametrize("shape", [{"num_key_value_heads": 4}, {"num_key_value_heads": 1}, {"attention_bias": True, "mlp_bias": True}, {"tie": True}])
def test_other_llama_shapes_equal_transformers(tmp_path: Path, shape: dict[str, Any]) -> None:
    extra = {"tie_word_embeddings": True} if shape.pop("tie", False) else {}
    make_model(tmp_path, shape=TINY | {"num_hidden_layers": 1} | shape | extra, seed=3)
    folder = tmp_path / "models" / "00000001"
    engine = TorchEngine(folder, ServingSettings(max_concurrent_sequences=2))
    ids = asyncio.run(generate(engine, ask("s", "水渠 is", max_tokens=12)))[1][0]
    engine.close()
    Reference(folder).assert_same("水渠 is", ids, 12)


def test_a_seeded_answer_is_the_same_alone_and_in_a_crowd(engine: TorchEngine) -> None:
    wanted = {"temperature": 1.0, "top_p": 0.95, "seed": 7, "max_tokens": 40}

    async def main() -> None:
        alone = await generate(engine, ask("alone", "你好", **wanted))
        others = [generate(engine, ask(f"o{i}", prompt, temperature=1.3, seed=i, max_tokens=5 + i)) for i, prompt in enumerate(PROMPTS * 2)]
        crowd = await asyncio.gather(*others[:7], generate(engine, ask("crowd", "你好", **wanted)), *others[7:])
        assert crowd[7] == alone

    asyncio.run(main())


def test_choices_of_one_request_differ_and_another_seed_gives_another_answer(engine: TorchEngine) -> None:
    async def main() -> None:
        _, ids, _ = await generate(engine, ask("n", "x", temperature=1.0, seed=1, num_choices=3))
        _, other, _ = await generate(engine, ask("m", "x", temperature=1.0, seed=2, num_choices=3))
        assert len({tuple(sequence) for sequence in ids + other}) == 6

    asyncio.run(main())


def test_a_stop_string_ends_the_answer_and_is_never_shown(engine: TorchEngine) -> None:
    async def main() -> None:
        text = (await generate(engine, ask("free", "水渠", max_tokens=40)))[0][0]
        stop = text[12:15]  # wherever the tokens' borders are
        assert "\ufffd" not in stop
        stopped, _, ends = await generate(engine, ask("stop", "水渠", max_tokens=40, stop=(stop, "never comes up")))
        assert stopped == [text[: text.index(stop)]]
        assert ends == [FinishReason.STOP]

    asyncio.run(main())


def test_the_end_of_text_token_ends_the_answer_and_is_not_text(engine: TorchEngine, folder: Path) -> None:
    async def main() -> None:
        _, ids, ends = await generate(engine, ask("eos", *PROMPTS, temperature=2.0, max_tokens=400, num_choices=4))
        assert FinishReason.STOP in ends, "with 28 hot answers of 400 tokens, the end of text comes up"
        for sequence, end in zip(ids, ends, strict=True):
            assert (sequence[-1] == 0) == (end == FinishReason.STOP)
            assert 0 not in sequence[:-1]

    asyncio.run(main())


def test_the_text_is_the_decoding_of_the_tokens(engine: TorchEngine, reference: Reference) -> None:
    texts, ids, _ = asyncio.run(generate(engine, ask("t", *PROMPTS, max_tokens=30)))
    for text, token_ids in zip(texts, ids, strict=True):
        decoded = reference.tokenizer.decode(token_ids, skip_special_tokens=True)
        assert decoded.startswith(text)
        assert decoded[len(text) :] in ("", "\ufffd"), "only an unfinished last character may be missing"


def test_the_context_limits_an_answer_that_asks_for_all(engine: TorchEngine) -> None:
    _, ids, ends = asyncio.run(generate(engine, ask("all", "zq7" * 150, max_tokens=None, ignore_eos=True)))
    assert ends == [FinishReason.LENGTH]
    assert len(ids[0]) == 512 - 450


@pytest.mark.parametrize(
    ("request_", "code", "param"),
    [
        (ask("long", "x " * 3000), "context_length_exceeded", "prompt"),
        (GenerationRequest(id="ids", prompts=((1, 99_999),)), "invalid_value", "prompt"),
        (GenerationRequest(id="many", prompts=("x",) * 65), "invalid_value", "n"),
        (GenerationRequest(id="chat", messages=(Message("user", "x " * 3000),)), "context_length_exceeded", "messages"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_400(engine: TorchEngine, request_: GenerationRequest, code: str, param: str) -> None:
    async def main() -> list[Any]:
        return [events async for events in engine.submit(request_)]

    (failure,) = asyncio.run(main())
    assert isinstance(failure, Failure)
    assert (failure.status, failure.code, failure.param) == (400, code, param)


def test_an_empty_prompt_begins_a_document(engine: TorchEngine) -> None:
    assert len(asyncio.run(generate(engine, ask("empty", "", max_tokens=3, ignore_eos=True)))[1][0]) == 3


def test_a_full_queue_refuses_and_recovers(engine: TorchEngine) -> None:
    async def main() -> None:
        work = GenerationRequest(id="full", prompts=("x",) * 64, sampling=Sampling(max_tokens=400, ignore_eos=True))
        async with aclosing(cast("Any", engine.submit(work))) as first:
            await anext(first)
            refused = [events async for events in engine.submit(ask("late", "x"))]
            assert isinstance(refused[0], Failure)
            assert (refused[0].status, refused[0].code) == (429, "queue_full")
            assert refused[0].retry_after_s
        await until(lambda: engine.stats().num_running == 0)
        assert (await generate(engine, ask("again", "x")))[2]

    asyncio.run(main())


def test_a_reader_that_goes_away_frees_its_slots(engine: TorchEngine) -> None:
    async def main() -> None:
        for number in range(3):
            work = GenerationRequest(id=f"gone{number}", prompts=("x",) * 6, sampling=Sampling(max_tokens=400, ignore_eos=True))
            async with aclosing(cast("Any", engine.submit(work))) as events:
                await anext(events)
                assert engine.stats().num_running == 4
            await until(lambda: engine.stats().num_running == engine.stats().num_waiting == 0)

    asyncio.run(main())


def test_cancel_ends_a_request_as_cancelled_and_leaves_the_others_alone(engine: TorchEngine, reference: Reference) -> None:
    async def main() -> None:
        doomed = asyncio.create_task(generate(engine, ask("doomed", "x", "A headrace is", max_tokens=400, ignore_eos=True)))
        kept = asyncio.create_task(generate(engine, ask("kept", "水渠", max_tokens=60)))
        await until(lambda: engine.stats().num_running == 3)
        engine.cancel("doomed")
        engine.cancel("nobody")
        assert (await doomed)[2] == [FinishReason.CANCELLED] * 2
        reference.assert_same("水渠", (await kept)[1][0], 60)

    asyncio.run(main())


def test_a_step_that_fails_is_answered_with_500_and_the_engine_goes_on(folder: Path) -> None:
    engine = TorchEngine(folder, ServingSettings(max_concurrent_sequences=2))

    async def main() -> None:
        before = await generate(engine, ask("before", "x"))
        model = engine._batch._model
        head = model._head_VD
        model._head_VD = head[:, :3]  # as if memory had gone bad
        events = [events async for events in engine.submit(ask("during", "x"))]
        assert isinstance(events[-1], Failure)
        assert (events[-1].status, events[-1].code) == (500, "engine_failed")
        assert engine.health().ok  # one request can break one step
        for number in range(2):
            await events_of(engine, ask(f"during{number}", "x"))
        assert not engine.health().ok and "3 steps failed" in engine.health().reason
        model._head_VD = head
        assert await generate(engine, ask("after", "x")) == before
        assert engine.health().ok
        assert engine.stats().num_running == engine.stats().num_waiting == 0

    asyncio.run(main())
    engine.close()


def test_closing_fails_what_runs_and_waits_and_refuses_what_comes(folder: Path) -> None:
    engine = TorchEngine(folder, ServingSettings(max_concurrent_sequences=1))

    async def main() -> None:
        running, waiting = (asyncio.create_task(events_of(engine, ask(name, "x", max_tokens=200, ignore_eos=True))) for name in ("one", "two"))
        await until(lambda: engine.stats().num_running == engine.stats().num_waiting == 1)
        await asyncio.to_thread(engine.close)
        for broken in (await running, await waiting):
            assert isinstance(broken[-1], Failure) and broken[-1].status == 503
            assert not ends(broken)
        assert not engine.health().ok
        refused = [events async for events in engine.submit(ask("late", "x"))]
        assert isinstance(refused[0], Failure) and refused[0].status == 503

    asyncio.run(main())


def test_a_step_that_hangs_shows_in_the_health_and_its_requests_fail_when_the_engine_is_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "CLOSE_TIMEOUT_S", 0.05)
    engine = TorchEngine(folder, ServingSettings(max_concurrent_sequences=1), Heartbeat(stalled_s=0.1))
    go_on = threading.Event()
    monkeypatch.setattr(engine._batch, "step", lambda: go_on.wait(60))

    async def main() -> None:
        assert engine.health().ok
        hung = asyncio.create_task(events_of(engine, ask("hung", "x")))
        await until(lambda: not engine.health().ok)
        assert "1 sequences wait" in engine.health().reason
        await asyncio.to_thread(engine.close)
        assert isinstance((await hung)[-1], Failure)

    asyncio.run(main())
    go_on.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_of_the_thread_fails_what_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(folder, ServingSettings(max_concurrent_sequences=1))

    def step() -> None:
        raise SystemExit

    monkeypatch.setattr(engine._batch, "step", step)
    answer = asyncio.run(events_of(engine, ask("doomed", "x")))
    assert isinstance(answer[-1], Failure) and answer[-1].code == "engine_failed"
    engine._thread.join(60)
    assert not engine.health().ok
    engine.close()


def test_the_times_of_an_answer_are_those_of_the_engine(folder: Path) -> None:
    """With one slot, the second answer queues for as long as the first one computes; and a reader that dawdles is in none of it."""
    engine = TorchEngine(folder, ServingSettings(max_concurrent_sequences=1))

    async def timing(name: str, num_tokens: int) -> Timing:
        async for events in engine.submit(ask(name, "A headrace is", max_tokens=num_tokens, ignore_eos=True)):
            assert isinstance(events, tuple)
            if events[-1].timing:
                return events[-1].timing
        raise AssertionError("the last chunk brings the times")

    async def main() -> None:
        begin_s = time.perf_counter()
        first, second = await asyncio.gather(timing("first", 40), timing("second", 1))
        wall_s = time.perf_counter() - begin_s
        assert min(first.prefill_s, first.decode_s, second.prefill_s) > 0 == second.decode_s
        assert second.queue_s > first.prefill_s + first.decode_s
        assert max(first.total_s, second.total_s) < wall_s
        assert second.time_to_first_token_s == second.total_s

    asyncio.run(main())
    engine.close()


def test_a_text_that_cannot_fit_or_finds_no_place_is_refused_before_it_is_encoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(folder, ServingSettings(max_concurrent_sequences=1, max_queued_requests=1))

    async def main() -> None:
        held = [asyncio.create_task(events_of(engine, ask(name, "x", max_tokens=400, ignore_eos=True))) for name in ("one", "two")]
        await until(lambda: engine.stats().num_running == engine.stats().num_waiting == 1)
        monkeypatch.delattr(engine._prompts, "_tokenizer")
        full = await events_of(engine, ask("full", "x"))
        assert isinstance(full[0], Failure) and full[0].status == 429
        for name in ("one", "two"):
            engine.cancel(name)
        await asyncio.gather(*held)
        for request in (ask("long", "水" * 2**20), GenerationRequest(id="chat", messages=(Message("user", "x" * 2**22),))):
            long = await events_of(engine, request)
            assert isinstance(long[0], Failure) and long[0].code == "context_length_exceeded"

    asyncio.run(main())
    engine.close()


def test_two_requests_of_one_id_do_not_end_each_other(engine: TorchEngine) -> None:
    async def main() -> None:
        left = cast("Any", engine.submit(ask("same", "x", max_tokens=400, ignore_eos=True)))
        await anext(left)
        kept = asyncio.create_task(generate(engine, ask("same", "x", max_tokens=60, ignore_eos=True)))
        await until(lambda: engine.stats().num_running == 2)
        await left.aclose()
        assert (await kept)[2] == [FinishReason.LENGTH]

    asyncio.run(main())


def test_an_architecture_that_is_not_llama_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(RegistryError, match="gpt2"):
        load_llama(tmp_path, num_slots=1, max_length=8)


def test_streamed_pieces_never_hold_half_a_chinese_character(engine: TorchEngine, reference: Reference) -> None:
    """The prompt asks nothing of the random model; what matters is that pieces, joined, are what the bytes say."""

    async def main() -> tuple[str, list[int]]:
        text = ""
        ids: list[int] = []
        async for events in engine.submit(ask("zh", "你好，世界！今天", max_tokens=80, ignore_eos=True)):
            assert isinstance(events, tuple)
            for chunk in events:
                text += chunk.text
                ids += chunk.token_ids
        return text, ids

    text, ids = asyncio.run(main())
    table = engine._prompts.table
    raw = b"".join(table[token_id] for token_id in ids)
    assert text == codecs.getincrementaldecoder("utf-8")(errors="replace").decode(raw)
