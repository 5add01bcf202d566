from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.text.stream import AnswerText, Part, Piece

REPLACEMENT = "\ufffd"


def read(answer: AnswerText, ids: list[int]) -> list[Piece]:
    pieces = [piece for token_id in ids for piece in answer.push(token_id)]
    return pieces + answer.finish()


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def decoded(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def cut(text: str, stop: list[str]) -> str:
    """The text before the stop string that is complete first."""
    found = [(text.index(string) + len(string), text.index(string)) for string in stop if string in text]
    return text[: min(found)[1]] if found else text


@given(data=st.data())
def test_pieces_add_up_to_the_decoded_text_for_any_ids(any_kind, data):
    ids = data.draw(st.lists(st.integers(0, len(any_kind) + 3), max_size=40))
    answer = AnswerText(any_kind)
    pieces = read(answer, ids)
    assert "".join(piece.text for piece in pieces) == decoded(any_kind, ids) == answer.text


@given(data=st.data())
def test_the_answer_ends_before_the_stop_string_that_is_complete_first(any_kind, data):
    ids = data.draw(st.lists(st.integers(0, len(any_kind) - 1), max_size=30))
    whole = decoded(any_kind, ids)
    slices = st.tuples(st.integers(0, len(whole)), st.integers(1, 5)).map(lambda place: whole[place[0] :][: place[1]])
    stop = data.draw(st.lists(slices.filter(bool) | st.sampled_from(["\n", "the", " a"]), max_size=3))
    answer = AnswerText(any_kind, stop=stop)
    pieces = read(answer, ids)
    assert "".join(piece.text for piece in pieces) == cut(whole, stop)
    assert answer.stopped == any(string in whole for string in stop)


@pytest.mark.parametrize("text", ["你好，世界 🧑‍🚀!", "naïve café привет", "a\n\n b  c"])
def test_no_piece_holds_half_a_character(any_kind, text):
    ids = ids_of(any_kind, text)
    if REPLACEMENT in decoded(any_kind, ids):
        pytest.skip("this vocabulary cannot spell the text")
    assert all(piece.text and REPLACEMENT not in piece.text for piece in read(AnswerText(any_kind), ids))


def test_an_unfinished_character_at_the_very_end_shows_as_one_replacement(make_tokenizer):
    tokenizer = make_tokenizer()
    ids = ids_of(tokenizer, "ok 🚀")[:-1]
    answer = AnswerText(tokenizer)
    assert "".join(piece.text for token_id in ids for piece in answer.push(token_id)) == "ok "
    assert answer.finish() == [Piece(REPLACEMENT)]


def test_text_is_shown_at_once_unless_it_may_begin_a_stop_string(make_tokenizer):
    tokenizer = make_tokenizer()
    answer = AnswerText(tokenizer, stop=["User:"])
    letters = [ids_of(tokenizer, letter)[0] for letter in "aUsxUU"]
    assert [[piece.text for piece in answer.push(letter)] for letter in letters] == [["a"], [], [], ["Usx"], [], ["U"]]
    assert answer.finish() == [Piece("U")]


def test_nothing_follows_a_stop_string(make_tokenizer):
    tokenizer = make_tokenizer()
    answer = AnswerText(tokenizer, stop=["\nUser:"])
    pieces = read(answer, ids_of(tokenizer, "hi there\nUser: hello"))
    assert "".join(piece.text for piece in pieces) == answer.text == "hi there"
    assert answer.stopped


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("stop", ["<|im_start|>", "fox<|im_start|>", "<|im_start|>user"])
def test_a_stop_string_may_hold_a_special_token_which_is_no_text_otherwise(make_tokenizer, kind, stop):
    tokenizer = make_tokenizer("chatml", kind)
    answer = AnswerText(tokenizer, stop=[stop])
    read(answer, ids_of(tokenizer, "the <|im_end|> fox<|im_start|>user dog"))
    whole = decoded(tokenizer, ids_of(tokenizer, "the <|im_end|> fox"))
    assert answer.stopped and answer.text.split() == whole.removesuffix("fox" if "fox" in stop else "").split()

    unmet = AnswerText(tokenizer, stop=["<|im_start|>dog", "<|im_start|><|im_start|>"])
    pieces = read(unmet, ids_of(tokenizer, "the <|im_start|>fox<|im_start|>"))
    assert not unmet.stopped and "im_start" not in unmet.text
    assert "".join(piece.text for piece in pieces) == unmet.text and "fox" in unmet.text.replace(" ", "")


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("style", ["qwen3", "llama2"])  # tags that are one token, tags spelled in several
def test_thinking_is_set_apart(make_tokenizer, style, kind):
    tokenizer = make_tokenizer(style, kind)
    answer = AnswerText(tokenizer, begins=Part.START, stop=["fox"])
    pieces = read(answer, ids_of(tokenizer, "<think>\nthe fox\n</think>\n\nThe dog. <think> fox"))
    assert answer.thinking == "the fox"
    assert answer.text.strip() == "The dog. <think>"
    assert answer.stopped
    assert [piece.thinking for piece in pieces] == sorted((piece.thinking for piece in pieces), reverse=True)


def test_thinking_that_the_prompt_opened_ends_at_the_first_closing_tag(make_tokenizer):
    tokenizer = make_tokenizer("r1")
    answer = AnswerText(tokenizer, begins=Part.THINKING)
    assert answer.is_thinking
    read(answer, ids_of(tokenizer, "\nthe fox\n</think>\n\nThe dog </think>."))
    assert (answer.thinking, answer.text, answer.is_thinking) == ("the fox", "The dog </think>.", False)


def test_an_answer_that_does_not_begin_with_thinking_is_all_answer(make_tokenizer):
    tokenizer = make_tokenizer("qwen3")
    answer = AnswerText(tokenizer, begins=Part.START)
    read(answer, ids_of(tokenizer, " hi <think>there</think>"))
    assert (answer.thinking, answer.text) == ("", " hi <think>there</think>")


def test_thinking_cut_off_is_no_answer(make_tokenizer):
    tokenizer = make_tokenizer("qwen3")
    answer = AnswerText(tokenizer, begins=Part.START)
    read(answer, ids_of(tokenizer, "<think>the quick </thi"))
    assert (answer.thinking, answer.text, answer.is_thinking) == ("the quick </thi", "", True)


@pytest.mark.parametrize("thought", ["<|channel|>analysis<|message|>the fox<|end|><|start|>assistant", ""])
def test_channels_are_read_as_thinking_and_answer(make_tokenizer, thought):
    tokenizer = make_tokenizer("harmony")
    answer = AnswerText(tokenizer, begins=Part.START)
    read(answer, ids_of(tokenizer, f"{thought}<|channel|>final<|message|>The dog."))
    assert (answer.thinking, answer.text) == ("the fox" if thought else "", "The dog.")


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "wordpiece"])
def test_the_work_per_token_does_not_grow_with_the_answer(make_tokenizer, monkeypatch, kind):
    tokenizer = make_tokenizer(kind=kind)
    ids = ids_of(tokenizer, "The quick brown fox 你好 ") * 30
    decoded_ids = 0
    decode = tokenizer.decode

    def counting(ids, **options):
        nonlocal decoded_ids
        decoded_ids += len(ids)
        return decode(ids, **options)

    monkeypatch.setattr(tokenizer, "decode", counting)
    read(AnswerText(tokenizer, stop=["never"]), ids)
    assert decoded_ids <= 4 * len(ids)


def test_added_tokens_of_a_byte_level_vocabulary_are_text_as_they_stand(make_tokenizer):
    tokenizer = make_tokenizer.__wrapped__()
    tokenizer.add_tokens(["naïve", "č", "Ġx", "日本"])
    said = "a naïve č日本Ġx café"
    answer = AnswerText(tokenizer, stop=["never"])
    pieces = read(answer, ids_of(tokenizer, said))
    assert answer.text == "".join(piece.text for piece in pieces) == said


def test_half_a_character_before_an_added_token_is_no_part_of_it(make_tokenizer):
    tokenizer = make_tokenizer.__wrapped__()
    tokenizer.add_tokens(["é"])
    begun = ids_of(tokenizer, "🦑")[:1]  # the first byte of four
    answer = AnswerText(tokenizer)
    read(answer, [*begun, *ids_of(tokenizer, "éa")])
    assert answer.text == f"{REPLACEMENT}éa"
