"""The bytes of tokens, joined, are the text."""

from __future__ import annotations

import pytest

from kvlite.text.token_bytes import token_bytes


@pytest.mark.parametrize("text", ["Once upon a time, naïve café!", "你好，世界 🧑‍🚀!", "a\n\n b  c"])
def test_joined_they_are_the_text(any_kind, text):
    ids = any_kind(text, add_special_tokens=False)["input_ids"]
    if any_kind.unk_token == "[UNK]" or any_kind.unk_token_id in ids:
        pytest.skip("WordPiece leaves out the spaces, or the vocabulary has not all of the text")
    joined = b"".join(token_bytes(any_kind, index) for index in ids).decode()
    decoded = any_kind.decode(ids, clean_up_tokenization_spaces=False)
    assert joined.removeprefix(" ") == decoded.removeprefix(" ")


def test_added_tokens_are_their_names_and_unknown_ids_are_nothing(any_kind):
    for index, token in any_kind.added_tokens_decoder.items():
        assert token_bytes(any_kind, index).decode() == token.content
    assert token_bytes(any_kind, len(any_kind) + 5) == b""
