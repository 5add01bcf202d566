"""How models set their thinking apart from the answer: a table of tags, and which of them a model uses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ThinkTags:
    """Thinking lies between `open` and `close`; an answer without thinking may begin with `lead`."""

    open: str
    close: str
    lead: str = ""


DEFAULT_TAGS = ThinkTags("<think>", "</think>")
_KNOWN_TAGS = (
    DEFAULT_TAGS,  # DeepSeek-R1, Qwen3, GLM-4.5 and most others
    ThinkTags("[THINK]", "[/THINK]"),  # Magistral
    ThinkTags(  # gpt-oss: channels, separated by control tokens
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
    ),
)
_SWITCHES = ("enable_thinking", "thinking")


def think_tags(tokenizer: PreTrainedTokenizerBase) -> ThinkTags | None:
    """The tags this model thinks between: those its template or its added tokens know; None if it does not think."""
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    template = str(tokenizer.chat_template or "")
    for tags in _KNOWN_TAGS:
        markers = re.findall(r"<\|\w+\|>", tags.open) or [tags.open, tags.close]
        if tags.close in template or known.issuperset(markers):
            return tags
    return None


def think_switch(template: str) -> str | None:
    """The variable by which this template's thinking is switched on and off, if it has one."""
    for name in _SWITCHES:
        if re.search(rf"(?<![\w.'\"]){name}(?![\w'\"])", template):
            return name
    return None
