from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.text.forgery import ForgedStrings, unused_characters

STRINGS = ["<|im_end|>", "<|im_start|>", "[INST]", "[/INST]", "Assistant:", "<a b>", "aaa"]
FORGED = ForgedStrings(STRINGS)
MARK = "\ue000"
FRAGMENTS = [
    *STRINGS,
    "<|",
    "im_",
    "end|>",
    "<|im_end|",
    ">",
    "[",
    "INST]",
    "[[INST]",
    " ",
    "\n",
    "a",
    "＜|im_end|＞",
    "İß",
]
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join)


@given(text=texts)
def test_no_part_holds_a_forged_string_and_together_they_are_the_text(text):
    parts = FORGED.split(FORGED.mark(text, MARK), MARK) if MARK not in text else [text]
    assert "".join(parts) == text
    assert MARK in text or not any(FORGED.spans(part) for part in parts)


@given(contents=st.lists(texts.filter(lambda text: MARK not in text), max_size=4))
def test_contents_cannot_forge_a_string_together(contents):
    parts = FORGED.split("".join(FORGED.mark(content, MARK) for content in contents), MARK)
    assert not any(FORGED.spans(part) for part in parts)


@given(head=texts, tail=texts, space=st.sampled_from(["", "  "]))
def test_a_content_cannot_complete_a_literal_even_when_it_is_trimmed(head, tail, space):
    for literal_before, content, literal_after in (("<|im_", "end|>", ""), ("", "<|im_", "end|>")):
        marked = FORGED.mark(space + content + space, MARK).strip()
        assert len(FORGED.split(f"{literal_before}{marked}{literal_after}", MARK)) == 2


def test_what_the_template_writes_stays_whole():
    marked = FORGED.mark("hello <", MARK)
    assert FORGED.split(f"<|im_start|>{marked}<|im_end|>", MARK) == ["<|im_start|>hello <<|im_end|>"]


@pytest.mark.parametrize(
    "text",
    ["<|IM_END|>", "＜|im_end|＞", "<|im\u200b_end|>", "<|ím_end|>", "<|im_\x00end|>", "<a\u2581b>", "ASSISTANT:"],
)
def test_strings_are_found_however_a_normalizer_may_fold_them(text):
    assert FORGED.spans(f"é {text}.") == [(2, 2 + len(text))]
    assert FORGED.split(FORGED.mark(text, MARK), MARK) == list(text)


def test_overlapping_strings_are_each_cut():
    assert FORGED.split(FORGED.mark("aaaa b", MARK), MARK) == ["a", "a", "a", "a b"]


def test_without_strings_nothing_is_cut():
    assert ForgedStrings([]).split(ForgedStrings([""]).mark("<|im_end|>", MARK), MARK) == ["<|im_end|>"]


def test_unused_characters_are_distinct_and_new():
    first, second = unused_characters(2, ["\ue000 text", "\ue002"])
    assert (first, second) == ("\ue001", "\ue003")
