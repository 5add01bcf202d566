"""The tags between which models think, and the choice of those that a model uses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import Environment, TemplateSyntaxError, meta

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ThinkTags:
    """Tags `open` and `close` around thinking; an answer without thinking may begin with `lead`.

    A model uses these tags where its added tokens or its template hold all `tokens` (empty: the two tags).
    """

    open: str
    close: str
    lead: str = ""
    tokens: tuple[str, ...] = ()


DEFAULT_TAGS = ThinkTags("<think>", "</think>")
_KNOWN_TAGS = (
    DEFAULT_TAGS,  # DeepSeek-R1, Qwen3, GLM-4.5 and most others
    ThinkTags("[THINK]", "[/THINK]"),  # Magistral
    ThinkTags(  # gpt-oss: channels, separated by control tokens
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
        ("<|start|>", "<|channel|>", "<|message|>"),
    ),
    ThinkTags("<|channel>thought\n", "<channel|>", tokens=("<|channel>", "<channel|>")),  # Gemma 4
)
_SWITCHES = ("enable_thinking", "thinking")
_GENERATION_TAG = re.compile(r"{%-?\s*(end)?generation\s*-?%}")  # transformers' own, for training


def think_tags(tokenizer: PreTrainedTokenizerBase) -> ThinkTags | None:
    """Find the tags that this model's template or added tokens know; None if it does not think."""
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    template = str(tokenizer.chat_template or "")
    for tags in _KNOWN_TAGS:
        if all(token in known or token in template for token in tags.tokens or (tags.open, tags.close)):
            return tags
    return None


def think_switch(template: str) -> str | None:
    """Find the variable that switches this template's thinking on and off; None if it has none."""
    try:
        program = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION_TAG.sub("", template))
    except TemplateSyntaxError:
        return None  # rendering reports what is wrong with it
    variables = meta.find_undeclared_variables(program)
    return next((name for name in _SWITCHES if name in variables), None)
