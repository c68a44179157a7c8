"""Continuous batching: which tokens of which sequences go into the next step, and what becomes of the result.

Invariant: running sequence i has cache slot i; all of them are decoding, except that the last one may be part-way through its
prompt. A sequence that ends gives its slot up in the same step, and waiting sequences are let in every step, so no slot idles
while somebody waits. Prompts are computed at most PREFILL_TOKENS per step, so a long prompt cannot starve those who are decoding.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ray_apps.serving.engine.interface import Chunk, Failure, FinishReason, Timing
from ray_apps.serving.engine.llama import LlamaModel, Span
from ray_apps.serving.engine.sampling import Draw, choose
from ray_apps.serving.engine.text import TextStream

PREFILL_TOKENS = 256
"""Most prompt tokens in one step: about as much arithmetic as ten decoding steps of a batch of 16."""


@dataclass(slots=True, kw_only=True, eq=False)
class Running:
    """One sequence on its way: of a request, its prompt number ``index // num_choices``, choice ``index % num_choices``."""

    request_id: str
    index: int
    prompt: Sequence[int]
    max_tokens: int
    draw: Draw
    text: TextStream
    emit: Callable[[Chunk | Failure], None]
    """Takes the chunks; called on the thread that steps."""
    submitted_s: float = 0.0
    """When it was asked for; like all times here, of the batch's clock."""
    started_s: float | None = None
    """When the first step began that computes it."""
    first_token_s: float | None = None
    computed: int = 0
    """Tokens whose keys and values are in the cache."""
    cancelled: bool = False

    @property
    def is_decoding(self) -> bool:
        """Whether its whole prompt is in the cache."""
        return self.computed >= len(self.prompt)

    def next_tokens(self, budget: int) -> Sequence[int]:
        """The tokens to compute next: the last one generated, or the next piece of the prompt."""
        if self.is_decoding:
            return self.draw.generated[-1:]
        return self.prompt[self.computed : self.computed + budget]

    def finish(self, reason: FinishReason, now_s: float, text: str = "", token_ids: tuple[int, ...] = ()) -> None:
        """Say that it has ended."""
        timing, prompt_tokens = self._timing(now_s), len(self.prompt)
        self.emit(Chunk(index=self.index, text=text, token_ids=token_ids, finish_reason=reason, prompt_tokens=prompt_tokens, timing=timing))

    def _timing(self, now_s: float) -> Timing:
        """Where its time went up to now; a part that it has not come to took none."""
        started_s = now_s if self.started_s is None else self.started_s
        first_token_s = now_s if self.first_token_s is None else self.first_token_s
        return Timing(queue_s=started_s - self.submitted_s, prefill_s=first_token_s - started_s, decode_s=now_s - first_token_s)


class Batch:
    """The sequences of one engine. Not thread-safe: one thread calls everything."""

    def __init__(self, model: LlamaModel, num_slots: int, eos_token_ids: Iterable[int], clock: Callable[[], float] = time.perf_counter) -> None:
        self._model = model
        self._num_slots = num_slots
        self._eos_token_ids = frozenset(eos_token_ids)
        self._clock = clock
        self.running: list[Running] = []
        self.waiting: deque[Running] = deque()
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting)

    def clear(self) -> list[Running]:
        """Forget all sequences; returns them."""
        sequences = [*self.running, *self.waiting]
        self.running.clear()
        self.waiting.clear()
        return sequences

    def step(self) -> None:
        """Drop what was cancelled, compute one step, emit what it made, free the slots of what ended."""
        self._drop_cancelled()
        spans = self._plan()
        if not spans:
            return
        num_decoding = sum(sequence.is_decoding for sequence in self.running)
        logits_NV = self._model.step(spans, num_decoding)
        self.prompt_tokens += sum(len(span.token_ids) for span in spans[num_decoding:])
        for sequence, span in zip(self.running, spans, strict=True):
            sequence.computed = span.end
        ready = [row for row, sequence in enumerate(self.running) if sequence.is_decoding]
        if not ready:
            return
        token_ids = choose(logits_NV[ready], [self.running[row].draw for row in ready])
        now_s = self._clock()
        ended = [row for row, token_id in zip(ready, token_ids, strict=True) if self._advance(self.running[row], token_id, now_s)]
        for row in reversed(ended):
            self._remove(row)

    def _plan(self) -> list[Span]:
        """Every running sequence's next tokens, then new sequences while there are slots and prompt budget."""
        budget = PREFILL_TOKENS
        spans = []
        for slot, sequence in enumerate(self.running):
            tokens = sequence.next_tokens(budget)
            budget -= 0 if sequence.is_decoding else len(tokens)
            spans.append(Span(slot, sequence.computed, tokens))
        now_s = self._clock()
        while self.waiting and budget > 0 and len(self.running) < self._num_slots:
            sequence = self.waiting.popleft()
            sequence.started_s = now_s
            tokens = sequence.next_tokens(budget)
            budget -= len(tokens)
            spans.append(Span(len(self.running), 0, tokens))
            self.running.append(sequence)
        return spans

    def _advance(self, sequence: Running, token_id: int, now_s: float) -> bool:
        """Take the new token in; True if the sequence has ended with it."""
        generated = sequence.draw.generated
        sequence.first_token_s = now_s if sequence.first_token_s is None else sequence.first_token_s
        generated.append(token_id)
        self.completion_tokens += 1
        if token_id in self._eos_token_ids and not sequence.draw.sampling.ignore_eos:
            sequence.finish(FinishReason.STOP, now_s, sequence.text.finish(), (token_id,))
            return True
        text = sequence.text.push(token_id)
        if sequence.text.stopped:
            sequence.finish(FinishReason.STOP, now_s, text, (token_id,))
            return True
        if len(generated) >= sequence.max_tokens:
            sequence.finish(FinishReason.LENGTH, now_s, text + sequence.text.finish(), (token_id,))
            return True
        sequence.emit(Chunk(index=sequence.index, text=text, token_ids=(token_id,), prompt_tokens=len(sequence.prompt)))
        return False

    def _drop_cancelled(self) -> None:
        for row in reversed(range(len(self.running))):
            if self.running[row].cancelled:
                self.running[row].finish(FinishReason.CANCELLED, self._clock())
                self._remove(row)
        for sequence in [waiting for waiting in self.waiting if waiting.cancelled]:
            sequence.finish(FinishReason.CANCELLED, self._clock())
            self.waiting.remove(sequence)

    def _remove(self, row: int) -> None:
        """Close the hole in the slots: the last decoding sequence moves in, and a part-way prompt stays last."""
        last = len(self.running) - 1
        if row < last and not self.running[last].is_decoding:
            self._move(last - 1, row)
            self._move(last, last - 1)
        else:
            self._move(last, row)
        self.running.pop()

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self._model.cache.move(source, target, self.running[source].computed)
            self.running[target] = self.running[source]
