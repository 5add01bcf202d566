"""Render messages to one string: by the model's own chat template, or as a plain transcript for a model without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from kvlite.errors import BrokenModel, UsageError
from kvlite.text.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A template is a program that computes with the messages, so it may raise more than Jinja's own errors.
_TEMPLATE_FAULTS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)


class ChatTemplate:
    """The model's Jinja template; renders with the prompt for the next answer at the end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        self._tokenizer = tokenizer
        self.source = source

    def render(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        """Render the conversation; raises UsageError with the template's own message where it refuses."""
        return self._render(messages, variables, as_parts=self._wants_parts)

    @cached_property
    def _wants_parts(self) -> bool:
        """True where contents must be lists of parts, as in some templates of models that also see images."""
        return not self._shows_content(as_parts=False) and self._shows_content(as_parts=True)

    def _shows_content(self, *, as_parts: bool) -> bool:
        probe = Message("user", "50415926535")  # digits, which no template changes
        try:
            return probe.content in self._render([probe], {}, as_parts=as_parts)
        except UsageError:
            return False

    def _render(self, messages: Sequence[Message], variables: Mapping[str, Any], *, as_parts: bool) -> str:
        conversation: list[dict[str, Any]] = [
            {
                "role": message.role,
                "content": [{"type": "text", "text": message.content}] if as_parts else message.content,
            }
            for message in messages
        ]
        try:
            rendered = self._tokenizer.apply_chat_template(
                conversation, chat_template=self.source, tokenize=False, add_generation_prompt=True, **variables
            )
        except TemplateSyntaxError as error:
            raise BrokenModel(f"the model's chat template cannot be read: {_one_line(error)}") from error
        except _TEMPLATE_FAULTS as error:
            raise UsageError(f"the model's chat template refuses this conversation: {_one_line(error)}") from error
        return str(rendered)


class Transcript:
    """The format for a model without a chat template: `User: …` and `Assistant: …` lines."""

    source = ""
    stop = ("\nUser:",)

    def render(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        """Render the conversation; variables are ignored."""
        forms = {"system": "{}\n\n", "user": "User: {}\n", "assistant": "Assistant: {}\n"}
        return "".join(forms[message.role].format(message.content) for message in messages) + "Assistant:"


Renderer = ChatTemplate | Transcript


def template_source(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the tokenizer's chat template for plain chats; empty if it has none."""
    if not tokenizer.chat_template:
        return ""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:  # several named templates, none of them the default
        raise BrokenModel(f"the model has no default chat template: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
