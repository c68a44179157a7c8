"""The fast tokenizer engine agrees with the tokenizers package on every text."""

import functools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.tokenizers.engine.fast import Engine
from pipelines.tokenizers.engine.reference import Reference
from tests.unit.test_tokenizing_engine import FAMILIES, trained

# What takes part in a rule of some pattern, so that rules meet each other often.
SPECIAL = st.sampled_from(
    list("aZ é'sSſtTdDmMlLvVeErR  \n\r\t\x0b\x85\u00a0\u2028\u3000019٣½〇Ⅷ.,-!=_#水のカー㋐⺀〆\u0301\u093c\u3099क가ǅ😀\ufe0f\u200d\ue000\u0378")
)
TEXTS = st.one_of(st.text(SPECIAL, max_size=60), st.text(max_size=60), st.text(SPECIAL, min_size=10, max_size=12).map(lambda text: text * 40))


@functools.cache
def engines(family: str) -> tuple[Engine, Reference]:
    tokenizer_json = trained(FAMILIES[family]).to_str()
    return Engine(tokenizer_json), Reference(tokenizer_json)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=400, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
def test_any_text_gets_the_ids_of_the_tokenizers_package(family: str, texts: list[str]) -> None:
    engine, reference = engines(family)
    array = pa.array(texts, pa.large_string())
    mine, theirs = engine.encode(array, np.uint32), reference.encode(array, np.uint32)
    assert mine.offsets.tolist() == theirs.offsets.tolist()
    assert mine.ids.tolist() == theirs.ids.tolist()
