from __future__ import annotations

import pytest

from kvlite.text.encoder import Encoder, common_start, control_tokens, head
from kvlite.text.forgery import ForgedStrings


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


def test_the_head_of_parts_and_what_two_lists_begin_with():
    assert head(["ab", "", "cd", "ef"], 3) == ["ab", "", "c"]
    assert head(["ab"], 0) == [""]
    assert [common_start([1, 2, 3], other) for other in ([1, 2], [1, 4, 3], [])] == [2, 1, 0]
