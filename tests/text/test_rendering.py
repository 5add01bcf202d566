from __future__ import annotations

import re

import pytest

from kvlite.errors import UsageError
from kvlite.text import rendering
from kvlite.text.messages import Message
from kvlite.text.rendering import ChatTemplate, Transcript, role_markers, template_source


@pytest.mark.parametrize(
    ("style", "markers"),
    [
        ("chatml", {"<|im_start|>system", "<|im_start|>user", "<|im_start|>assistant", "<|im_end|>"}),
        ("llama2", {"<s>[INST]", "[INST]", "<<SYS>>", "<</SYS>>", "[/INST]", "</s><s>[INST]"}),
        ("gemma", {"<bos><start_of_turn>user", "<start_of_turn>user", "<start_of_turn>model", "<end_of_turn>"}),
        ("vicuna", {"USER:", "ASSISTANT:", "</s>USER:"}),
    ],
)
def test_role_markers_are_the_words_between_contents(make_tokenizer, style, markers):
    tokenizer = make_tokenizer(style)
    template = ChatTemplate(tokenizer, template_source(tokenizer))
    assert role_markers(template, re.compile("(?!)")) <= markers
    assert {word for word in markers if word[0] in "[A"} <= role_markers(template, re.compile("</?s>"))


def test_dates_and_preambles_are_no_role_markers(make_tokenizer):
    tokenizer = make_tokenizer("llama3")
    assert role_markers(ChatTemplate(tokenizer, template_source(tokenizer)), re.compile(r"<\|\w+\|>")) == set()


def test_headings_are_cut_by_their_name_not_by_their_signs(make_tokenizer):
    source = "{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}### Response:\n"
    markers = role_markers(ChatTemplate(make_tokenizer(), source), re.compile("(?!)"))
    assert markers == {"system:", "user:", "assistant:", "Response:"}


def test_a_transcript_has_a_system_role_and_its_own_markers():
    assert Transcript().has_system_role
    assert role_markers(Transcript(), re.compile("(?!)")) == {"User:", "Assistant:"}


def test_a_template_that_refuses_or_hides_the_system_prompt_has_no_system_role(make_tokenizer):
    tokenizer = make_tokenizer("gemma")
    assert not ChatTemplate(tokenizer, template_source(tokenizer)).has_system_role
    assert not ChatTemplate(tokenizer, "{{ messages[-1].content }}").has_system_role


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% if 0 %}{% endif %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (ENDLESS, "takes longer than 0.05 s"),
        ("{{ 'x' * 10000 }}{{ messages[0].content }}", "writes more than"),
        ("{{ 'x' * 10 ** 15 }}", "refuses this conversation"),
    ],
)
def test_a_template_that_never_ends_or_writes_without_end_is_refused(make_tokenizer, monkeypatch, source, says):
    monkeypatch.setattr(rendering, "LONGEST_S", 0.05)
    template = ChatTemplate(make_tokenizer(), source)
    with pytest.raises(UsageError, match=says):
        template.render([Message("user", "hi")], {})
