"""Choosing tokens: rows do not see each other, cut-offs hold, frequencies follow the probabilities."""

import math

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ray_apps.serving.engine.interface import Sampling
from ray_apps.serving.engine.sampling import Draw, choose, uniform

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 3]),
    presence_penalty=st.sampled_from([0.0, 1.0, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    seed=st.integers(-(2**63), 2**64 - 1),
)
DRAWS = st.builds(Draw, SAMPLINGS, st.integers(0, 5), st.lists(st.integers(0, 19), max_size=5))


def logits(seed: int, rows: int, vocabulary: int = 20) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


@settings(max_examples=60)
@given(st.lists(DRAWS, min_size=1, max_size=6), st.integers(0, 2**31))
def test_a_row_gets_the_same_token_alone_and_in_a_crowd(draws: list[Draw], seed: int) -> None:
    together = logits(seed, len(draws))
    alone = [choose(together[row : row + 1].clone(), [draw])[0] for row, draw in enumerate(draws)]
    assert choose(together, draws) == alone


@given(st.integers(0, 2**31), st.floats(0.05, 0.95), st.integers(0, 2**40))
def test_top_p_draws_from_the_smallest_set_that_reaches_it(seed: int, top_p: float, request_seed: int) -> None:
    row = logits(seed, 1)
    probabilities, order = torch.softmax(row[0], -1).sort(descending=True)
    token_id = choose(row.clone(), [Draw(Sampling(top_p=top_p, seed=request_seed), 0)])[0]
    rank = order.tolist().index(token_id)
    assert float(probabilities[:rank].double().sum()) < top_p + 1e-6


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(0, 2**40))
def test_top_k_draws_from_the_k_likeliest(seed: int, top_k: int, request_seed: int) -> None:
    row = logits(seed, 1)
    likeliest = row[0].topk(top_k).indices.tolist()
    assert choose(row, [Draw(Sampling(top_k=top_k, seed=request_seed), 0)])[0] in likeliest


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 6), st.floats(0.05, 1.0), st.sampled_from([0.5, 1.0, 2.0]))
def test_what_may_be_drawn_under_top_k_and_top_p_is_what_transformers_leaves(seed: int, top_k: int, top_p: float, temperature: float) -> None:
    row = logits(seed, 1)
    left = TemperatureLogitsWarper(temperature)(None, row.clone())
    left = TopKLogitsWarper(top_k)(None, left) if top_k else left
    theirs = TopPLogitsWarper(top_p)(None, left)
    mass = torch.softmax(left[0], -1).sort(descending=True).values.double().cumsum(0)
    assume(float((mass - top_p).abs().min()) > 1e-5)  # a tie of rounding may fall on either side
    ours = {choose(row.clone(), [Draw(Sampling(top_k=top_k, top_p=top_p, temperature=temperature, seed=number), 0)])[0] for number in range(100)}
    allowed = set(torch.isfinite(theirs[0]).nonzero().flatten().tolist())
    likely = {token_id for token_id in allowed if float(torch.softmax(theirs[0], -1)[token_id]) > 0.2}
    assert likely <= ours <= allowed


def test_tokens_come_up_as_often_as_their_probability_says() -> None:
    row = logits(3, 1, vocabulary=5)
    probabilities = torch.softmax(row[0], -1).tolist()
    total = 4000
    drawn = [choose(row.clone(), [Draw(Sampling(seed=seed), 0)])[0] for seed in range(total)]
    for token_id, probability in enumerate(probabilities):
        assert abs(drawn.count(token_id) - total * probability) <= 6 * math.sqrt(total * probability * (1 - probability)) + 1


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 128), st.integers(0, 2**32))
def test_the_random_number_is_in_range_and_repeatable(seed: int, choice: int, position: int) -> None:
    assert 0 <= uniform(seed, choice, position) < 1
    assert uniform(seed, choice, position) == uniform(seed, choice, position)


def test_penalties_push_down_what_was_said() -> None:
    row = torch.tensor([[2.0, 1.9, 0.0]])
    assert choose(row.clone(), [Draw(Sampling(temperature=0), 0, [0])]) == [0]
    assert choose(row.clone(), [Draw(Sampling(temperature=0, presence_penalty=0.5), 0, [0])]) == [1]
    assert choose(row.clone(), [Draw(Sampling(temperature=0, frequency_penalty=0.06), 0, [0, 0])]) == [1]
    assert choose(row.clone(), [Draw(Sampling(temperature=0, frequency_penalty=0.06), 0, [0])]) == [0]
