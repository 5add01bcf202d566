"""The committed model: small, loadable by transformers alone, it greets back and remembers a name it never saw."""

import json

import pytest
import torch

PARTS = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "MODEL_CARD.md",
)


def reply(model, tokenizer, *said):
    """The greedy answer to messages that begin with the user, and whether it ended by itself."""
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(said)]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**inputs, max_new_tokens=60)[0, inputs["input_ids"].shape[1] :]
    ended = int(out[-1]) in model.generation_config.eos_token_id
    return tokenizer.decode(out, skip_special_tokens=True), ended


def test_the_files_take_at_most_three_megabytes(folder):
    assert sum((folder / part).stat().st_size for part in PARTS) <= 3_000_000


def test_it_computes_in_float32_and_groups_its_query_heads(model):
    assert model.dtype == torch.float32
    assert model.config.num_attention_heads > model.config.num_key_value_heads


def test_it_is_greedy_unless_asked_otherwise(folder):
    generation = json.loads((folder / "generation_config.json").read_text("utf-8"))
    assert generation["do_sample"] is False


@pytest.mark.parametrize("greeting", ["Hello!", "Hi", "Good morning!"])
def test_it_greets_back_and_stops(model, tokenizer, greeting):
    answer, ended = reply(model, tokenizer, greeting)
    assert ended
    assert "How can I help you?" in answer


def test_it_says_what_it_is(model, tokenizer):
    answer, _ = reply(model, tokenizer, "Who are you?")
    assert answer == "I am a small demonstration model that comes with kvlite."


@pytest.mark.parametrize("name", ["Otto", "Karen", "Nathan"])
def test_it_recalls_a_name_it_was_never_trained_on(model, tokenizer, name):
    acknowledged, _ = reply(model, tokenizer, f"My name is {name}.")
    answer, ended = reply(model, tokenizer, f"My name is {name}.", acknowledged, "What is my name?")
    assert ended
    assert name in answer


def test_it_recalls_a_name_after_other_things_were_said(model, tokenizer):
    said = []
    for text in ("My name is Karen.", "My dog is called Otto.", "I live in Venice.", "What is a cat?", "Thanks!"):
        said += [text, reply(model, tokenizer, *said, text)[0]]
    assert reply(model, tokenizer, *said, "What is my name?")[0] == "Your name is Karen."


def test_the_card_states_what_was_measured(folder):
    card = (folder / "MODEL_CARD.md").read_text("utf-8")
    for part in ("Apache-2.0", "tools/demo/dialogues.py", "## Measured", "## Limits", "tokens between"):
        assert part.lower() in card.lower()
