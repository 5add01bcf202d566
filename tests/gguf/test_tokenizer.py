"""Tokenizers read from GGUF files against those they were written from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kvlite.errors import UnsupportedModel
from kvlite.gguf.header import Header
from kvlite.gguf.tokenizer import build_tokenizer, end_tokens, tokenizer_config
from tests.gguf.gguf_file import SPECIAL, byte_level_tokenizer, tokenizer_metadata


def header(**changed: Any) -> Header:
    metadata = tokenizer_metadata(byte_level_tokenizer())
    return Header(Path("model.gguf"), metadata | {f"tokenizer.ggml.{key}": value for key, value in changed.items()}, {})


@pytest.fixture(scope="module")
def pair() -> tuple[Tokenizer, Tokenizer]:
    """One tokenizer as it was made and as it was read."""
    return byte_level_tokenizer(), build_tokenizer(header())


@given(text=st.text(max_size=60))
def test_byte_level_tokens_are_those_of_the_original_and_come_back_as_text(
    pair: tuple[Tokenizer, Tokenizer], text: str
) -> None:
    original, read = pair
    ids = read.encode(text, add_special_tokens=False).ids
    assert ids == original.encode(text, add_special_tokens=False).ids
    assert read.decode(ids, skip_special_tokens=False) == text


def test_digits_are_single_where_the_vocabulary_was_learned_so() -> None:
    merged = tokenizer_metadata(byte_level_tokenizer())
    tokens = [*merged["tokenizer.ggml.tokens"], "12"]
    merges = [*merged["tokenizer.ggml.merges"], "1 2"]
    for pre, wanted in (("gpt-2", ["12"]), ("smollm", ["1", "2"]), ("qwen2", ["1", "2"]), ("llama-bpe", ["12"])):
        assert build_tokenizer(header(pre=pre, tokens=tokens, merges=merges)).encode("12").tokens == wanted


@pytest.mark.parametrize("pre", [None, "some-new-cut"])
def test_a_cut_that_is_not_known_is_refused(pre: str | None) -> None:
    with pytest.raises(UnsupportedModel, match=r"does not say how it cuts text|cuts text as 'some-new-cut'"):
        build_tokenizer(header(pre=pre))


def test_an_answer_ends_at_every_token_that_ends_a_turn() -> None:
    assert end_tokens(header()) == [SPECIAL.index("</s>"), SPECIAL.index("<|im_end|>")]
    assert end_tokens(header(eot_token_id=3)) == [2, 3, 4]


def test_text_begins_with_bos_where_llama_cpp_has_it_so() -> None:
    for pre, begins in (("gpt-2", False), ("llama-bpe", True), ("tekken", True), ("qwen2", False)):
        read = header(pre=pre)
        del read.metadata["tokenizer.ggml.add_bos_token"]
        assert (build_tokenizer(read).encode("hat").ids[0] == 1) is begins


def test_special_tokens_of_phi3_take_the_space_behind_them() -> None:
    read = header()
    read.metadata["general.name"] = "Phi-3 mini"
    tokenizer = build_tokenizer(read)
    ids = tokenizer.encode("<|im_start|>\n hat", add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>hat"


def test_special_tokens_template_and_bos_are_those_of_the_file() -> None:
    config = tokenizer_config(header())
    assert (config["bos_token"], config["eos_token"]) == ("<s>", "</s>") and "<|im_start|>" in config["chat_template"]
    assert build_tokenizer(header()).encode("hat").ids[0] != 1
    assert build_tokenizer(header(add_bos_token=True)).encode("hat").ids[0] == 1


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "c", "ab", "▁ab", "▁abc"]


def pieces(**changed: Any) -> Header:
    """A SentencePiece vocabulary, in which later pieces score lower, as byte-pair encoding has it."""
    about: dict[str, Any] = {
        "model": "llama",
        "pre": "default",
        "tokens": PIECES,
        "scores": [-float(index) for index in range(len(PIECES))],
        "token_type": [2, 3, 3, *[6] * 256, *[1] * 7],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "merges": None,
        "add_bos_token": True,
    }
    return header(**about | changed)


def test_pieces_join_by_score_and_unknown_text_falls_back_to_bytes() -> None:
    tokenizer = build_tokenizer(pieces())
    assert tokenizer.encode("abc").tokens == ["<s>", "▁abc"]
    assert tokenizer.encode("é", add_special_tokens=False).tokens == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("abc é").ids) == "abc é"
    bare = build_tokenizer(pieces(add_space_prefix=False, add_bos_token=False))
    assert bare.encode("abc").tokens == ["ab", "c"]


def test_gemma4_joins_pieces_by_the_merges_of_the_file_and_never_begins_with_a_space() -> None:
    about = {"model": "gemma4", "pre": None, "scores": None, "merges": ["a b", "▁ ab", "▁ab c"], "add_bos_token": None}
    metadata = {key: value for key, value in pieces(**about).metadata.items() if value is not None}
    tokenizer = build_tokenizer(Header(Path("model.gguf"), metadata, {}))
    assert tokenizer.encode("abc").tokens == ["<s>", "ab", "c"]
    assert tokenizer.encode(" abc", add_special_tokens=False).tokens == ["▁abc"]
    assert tokenizer.decode(tokenizer.encode("é abc").ids) == "é abc"


def test_the_parts_of_a_harmony_answer_do_not_end_it() -> None:
    tokens = ["<|end|>", "<|return|>", "<|call|>", "<|endoftext|>"]
    about = {"tokens": tokens, "token_type": [3] * 4, "eos_token_id": 1, "merges": []}
    assert end_tokens(header(**about)) == [1, 2, 3]
    assert end_tokens(header(**about | {"tokens": ["<|end|>", "x", "y", "<|endoftext|>"]})) == [0, 1, 3]
