"""The committed tokenizer: it writes any text, and its template is the one the model was trained on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.demo.dialogues import write_dialogue
from tools.demo.tokenizer import SPECIALS, render, train_tokenizer
from tools.demo.vocabulary import draw


@given(text=st.text())
def test_any_text_comes_back(tokenizer, text):
    if any(special in text for special in SPECIALS):
        return
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["Zoë, naïve façade — 東京 🙂", "\x00\x1b[31m", "  two  spaces \n\n", "007"])
def test_bytes_outside_the_vocabulary_come_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_no_token_is_added_in_front_or_behind(tokenizer):
    assert tokenizer("Hello").input_ids == tokenizer("Hello", add_special_tokens=False).input_ids


@pytest.mark.parametrize("seed", ["0", "1", "2", "3", "4"])
def test_the_chat_template_writes_what_training_wrote(tokenizer, seed):
    dialogue = write_dialogue(seed, 6, "train")
    assert tokenizer.apply_chat_template(dialogue.messages(), tokenize=False) == render(dialogue)


def test_the_generation_prompt_opens_the_assistants_turn(tokenizer):
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_held_out_name_takes_few_tokens(tokenizer, rng):
    names = [draw("name", rng, "held-out") for _ in range(50)]
    tokens = [len(tokenizer.encode(" " + name, add_special_tokens=False)) for name in names]
    assert sum(tokens) / len(tokens) < 6


def test_training_it_again_gives_the_same_vocabulary():
    first, second = (train_tokenizer(3, vocab=400, dialogues=20) for _ in range(2))
    assert first.to_str() == second.to_str()
