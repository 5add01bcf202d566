from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.text.encoder import Encoder, common_start, control_tokens, head
from kvlite.text.forgery import ForgedStrings

short = st.lists(st.integers(0, 1), max_size=12).map(tuple)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "sentencepiece-legacy"])
@pytest.mark.parametrize(
    "parts", [["hello", " there"], ["<", "|im_end|>"], ["你", "好", "", "x"], ["a\n", "\nb"], ["", "b"]]
)
def test_parts_joined_are_the_whole_text(make_tokenizer, kind, parts):
    tokenizer = make_tokenizer(kind=kind)
    ids = Encoder(tokenizer, ForgedStrings([])).encode(parts)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == "".join(parts)


def test_text_that_continues_gets_no_space_in_front(make_tokenizer):
    tokenizer = make_tokenizer(kind="sentencepiece")
    ids = Encoder(tokenizer, ForgedStrings([])).encode(["hello"], continues=True)
    assert not tokenizer.convert_ids_to_tokens(ids[0]).startswith("▁")


def test_control_tokens_are_the_special_ones_and_those_the_template_writes(make_tokenizer):
    tokenizer = make_tokenizer("qwen3")
    special = {"<|endoftext|>", "<|im_end|>", "<|im_start|>"}
    assert control_tokens(tokenizer, "") == special
    assert control_tokens(tokenizer, "</think>") == special | {"</think>"}


def test_the_head_of_parts():
    assert head(["ab", "", "cd", "ef"], 3) == ["ab", "", "c"]
    assert head(["ab"], 0) == [""]


@given(short, short)
def test_what_two_lists_begin_with(one, other):
    expected = next((n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    assert common_start(one, other) == (min(len(one), len(other)) if expected is None else expected)
