from __future__ import annotations

import pytest

from kvlite.text.rendering import ChatTemplate
from kvlite.text.stream import DEFAULT_TAGS, think_tags


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
