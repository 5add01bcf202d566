from __future__ import annotations

import pytest

from kvlite.text.rendering import ChatTemplate
from kvlite.text.stream import DEFAULT_TAGS, AnswerText, Part, think_tags


@pytest.mark.parametrize(
    ("template", "switch"),
    [
        ("{% if enable_thinking is defined and not enable_thinking %}x{% endif %}", "enable_thinking"),
        ("{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ thinking }}", "thinking"),
        (
            "{% generation %}{{ enable_thinking }}{% endgeneration %}{% for m in n %}{% break %}{% endfor %}",
            "enable_thinking",
        ),
        ("{{ message.thinking }} thinking {# thinking #} {{ 'thinking' }}", None),
        ("{% if %}", None),
        ("", None),
    ],
)
def test_the_switch_is_a_variable_of_the_template(make_tokenizer, template, switch):
    assert ChatTemplate(make_tokenizer(), template).think_switch == switch


@pytest.mark.parametrize(
    ("style", "opening"), [("qwen3", "<think>"), ("harmony", "<|channel|>analysis<|message|>"), ("chatml", None)]
)
def test_tags_are_told_by_the_added_tokens(make_tokenizer, style, opening):
    tags = think_tags(make_tokenizer(style))
    assert (tags and tags.open) == opening


def test_tags_are_told_by_the_template(make_tokenizer, monkeypatch):
    tokenizer = make_tokenizer("chatml")
    monkeypatch.setattr(tokenizer, "chat_template", "{{ content.split('</think>')[-1] }}<think>")
    assert think_tags(tokenizer) == DEFAULT_TAGS


# The template knows the tags; the answer is as the model cards show it.
@pytest.mark.parametrize(
    ("tags", "written"),
    [
        ("<seed:think></seed:think>", "<seed:think>\nWhy?\n</seed:think>Because."),  # Seed-OSS
        ("<mm:think></mm:think>", "<mm:think>Why?</mm:think>\n\nBecause."),  # MiniMax-M3
        ("<thought></thought>", "<thought>\nWhy?\n</thought>\n\nBecause."),  # EXAONE Deep
        ("<|inner_prefix|><|inner_suffix|>", "<|inner_prefix|>Why?<|inner_suffix|>Because."),  # Apertus
    ],
)
def test_thinking_of_a_family_is_told_from_its_answer(make_tokenizer, monkeypatch, tags, written):
    tokenizer = make_tokenizer("chatml")
    monkeypatch.setattr(tokenizer, "chat_template", tags)
    assert read(tokenizer, written) == ("Why?", "Because.")


@pytest.mark.parametrize("thinking", ["", "<|START_THINKING|>Why?<|END_THINKING|>"])
def test_the_tokens_around_an_answer_of_command_a_are_no_part_of_it(make_tokenizer, thinking):
    written = f"{thinking}<|START_RESPONSE|>Because.<|END_RESPONSE|>"
    assert read(make_tokenizer("cohere"), written) == ("Why?" if thinking else "", "Because.")


def read(tokenizer, written: str) -> tuple[str, str]:
    answer = AnswerText(tokenizer, begins=Part.START)
    for token_id in tokenizer(written, add_special_tokens=False)["input_ids"]:
        answer.push(token_id)
    answer.finish()
    return answer.thinking, answer.text
