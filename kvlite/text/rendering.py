"""Render messages to one string, by the model's chat template or as a transcript, and find out what a template does.

What it does shows in conversations whose contents are known.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from inspect import signature
from threading import current_thread, main_thread
from types import FrameType
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateError, TemplateSyntaxError, meta

from kvlite.errors import BrokenModel, UsageError
from kvlite.text.forgery import unused_characters
from kvlite.text.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A template is a program that computes with the messages, so it may raise more than Jinja's own errors.
_TEMPLATE_FAULTS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
    MemoryError,
)
LONGEST_S = 10.0  # of the process's computing, for one rendering; those of real templates take milliseconds
_MOST_TIMES = 100  # what a rendering may be longer than the template and what it is given
_SWITCHES = ("enable_thinking", "thinking")
_GENERATION_TAG = re.compile(r"{%-?\s*(end)?generation\s*-?%}")  # transformers' own, for training
# Digits stay as they are whatever a template does to case and white space.
_PROBES = {"system": "70415926535", "user": "80415926535", "assistant": "90415926535"}


class ChatTemplate:
    """The model's Jinja template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        self._tokenizer = tokenizer
        self.source = source

    def render(self, messages: Sequence[Message], variables: Mapping[str, Any], *, opens: bool = True) -> str:
        """Render the conversation, and where it `opens` the next answer the prompt for that.

        Raises UsageError with the template's own message where it refuses.
        """
        return self._render(messages, variables, as_parts=self._wants_parts, opens=opens)

    @cached_property
    def has_system_role(self) -> bool:
        """True where the template takes a system message and shows it."""
        return self._shows("system", "user", as_parts=self._wants_parts)

    @cached_property
    def think_switch(self) -> str | None:
        """The variable that switches this template's thinking on and off; None if it has none."""
        try:
            program = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION_TAG.sub("", self.source))
        except TemplateSyntaxError:
            return None  # rendering reports what is wrong with it
        variables = meta.find_undeclared_variables(program)
        return next((name for name in _SWITCHES if name in variables), None)

    @cached_property
    def _wants_parts(self) -> bool:
        """True where contents must be lists of parts, as in some templates of models that also see images."""
        return not self._shows("user", as_parts=False) and self._shows("user", as_parts=True)

    @cached_property
    def _goes_through_tools(self) -> bool:
        """True where the template goes through the tools without asking whether there are any."""
        message = [{"role": "user", "content": "0"}]
        try:
            with _limited_time():
                self._apply(message, True, {})
        except TypeError:
            with suppress(*_TEMPLATE_FAULTS, UsageError), _limited_time():
                self._apply(message, True, {"tools": []})
                return True
        except (*_TEMPLATE_FAULTS, UsageError):
            pass
        return False

    def _apply(self, conversation: list[dict[str, Any]], opens: bool, variables: Mapping[str, Any]) -> Any:
        return self._tokenizer.apply_chat_template(
            conversation, chat_template=self.source, tokenize=False, add_generation_prompt=opens, **variables
        )

    def _shows(self, *roles: str, as_parts: bool) -> bool:
        """True where the template takes messages of these roles and shows the first one's content."""
        try:
            return _PROBES[roles[0]] in self._render(_probe(*roles), {}, as_parts=as_parts)
        except UsageError:
            return False

    def _render(
        self, messages: Sequence[Message], variables: Mapping[str, Any], *, as_parts: bool, opens: bool = True
    ) -> str:
        conversation: list[dict[str, Any]] = [
            {
                "role": message.role,
                "content": [{"type": "text", "text": message.content}] if as_parts else message.content,
            }
            for message in messages
        ]
        if self._goes_through_tools:
            variables = {"tools": [], **variables}
        try:
            with _limited_time():
                rendered = self._apply(conversation, opens, variables)
        except TemplateSyntaxError as error:
            raise BrokenModel(f"the model's chat template cannot be read: {_one_line(error)}") from error
        except _TEMPLATE_FAULTS as error:
            raise UsageError(f"the model's chat template refuses this conversation: {_one_line(error)}") from error
        given = sum(len(message.content) for message in messages) + len(repr(variables))
        most = _MOST_TIMES * (len(self.source) + given)
        if len(rendered) > most:
            raise UsageError(f"the model's chat template writes more than {most:,} characters; mend the template")
        return str(rendered)


@contextmanager
def _limited_time() -> Iterator[None]:
    """Within the block, in the main thread, LONGEST_S of computing raise UsageError; signals go to no other thread."""
    if current_thread() is not main_thread():
        yield
        return

    def end(signum: int, frame: FrameType | None) -> None:
        raise UsageError(f"the model's chat template takes longer than {LONGEST_S:g} s; mend the template")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


class Transcript:
    """The format for a model without a chat template: `User: …` and `Assistant: …` lines."""

    source = ""
    stop = ("\nUser:",)
    has_system_role = True
    think_switch = None

    def render(self, messages: Sequence[Message], variables: Mapping[str, Any], *, opens: bool = True) -> str:
        """Render the conversation; variables are ignored."""
        forms = {"system": "{}\n\n", "user": "User: {}\n", "assistant": "Assistant: {}\n"}
        return "".join(forms[message.role].format(message.content) for message in messages) + (
            "Assistant:" if opens else ""
        )


Renderer = ChatTemplate | Transcript


def template_source(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the tokenizer's chat template for plain chats, or the only one there is; empty if it has none."""
    if not tokenizer.chat_template:
        return ""
    named = tokenizer.chat_template
    if isinstance(named, dict) and "default" not in named:
        if len(named) > 1:
            raise BrokenModel(
                f"the model has chat templates for {' and '.join(sorted(named))} and none for a plain chat; "
                "name one of them `default` in its tokenizer_config.json"
            )
        return str(next(iter(named.values())))
    return str(tokenizer.get_chat_template())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def role_markers(renderer: Renderer, control: re.Pattern[str]) -> set[str]:
    """Collect the literals that mark roles and are no control tokens: `[/INST]`, `<<SYS>>`, `Assistant:`.

    They are found around the contents of a rendered probe: words that begin with a sign, and words that end with a
    colon right before a content.
    """
    rendered = ""
    for first in range(4):  # without a system role, or with one that takes no history
        with suppress(UsageError):
            rendered = renderer.render(_probe(*("system", "user", "assistant", "user")[first:]), {})
            break
    markers: set[str] = set()
    for literal in re.split("|".join(_PROBES.values()), rendered):
        words = [word for word in control.sub(" ", literal).split() if len(word) >= 3]
        named = [word for word in words if any(map(str.isalnum, word))] or words  # `###` alone is no marker
        markers.update(word for word in named if not word[0].isalnum())
        markers.update(word for word in named[-1:] if word.endswith(":"))
    return markers


def is_template_variable(name: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """True where `name` reaches a template, False where it is an argument of what renders it."""
    arguments = {*signature(tokenizer.apply_chat_template).parameters, "self", "messages", "conversations"}
    return name not in arguments - {"tools", "documents"}


def cut_behind(rendered: str, last: str) -> str:
    """Cut a rendered conversation behind its last message, which ends in the mark `last` and a space.

    Where a template trims messages, the space is gone, and white space at the message's end is trimmed as well.
    """
    before, found, behind = rendered.rpartition(last)
    if not found:
        raise UsageError("this model's chat template does not show the last answer whole, so it cannot be continued")
    return before if behind.startswith(" ") else before.rstrip()


def system_span(
    renderer: Renderer,
    turns: Sequence[Message],
    variables: Mapping[str, Any],
    control: re.Pattern[str],
    text: str,
    opens: bool,
) -> tuple[int, int] | None:
    """Find the leading system prompt of `turns` and the literals of its turn in `text`, their rendering.

    Returns start and end in characters; None if the template does not show it.
    """
    marks = unused_characters(3, [renderer.source, *(turn.content for turn in turns)])
    rendered = renderer.render(_with_system_marked(turns, marks), variables, opens=opens)
    places: dict[str, int] = {}
    for match in re.finditer(f"[{marks}]", rendered):
        places[match.group()] = match.start() - len(places)
    begin, end, others = (places.get(mark) for mark in marks)
    if begin is None or end is None or text != rendered.translate(dict.fromkeys(map(ord, marks))):
        return None
    start = begin if others is not None and others < begin else 0  # Mistral: earlier turns come before it
    if others is not None and others > end:
        turn_end = control.search(text, end, others)
        end = turn_end.end() if turn_end else others
    return start, end


def _with_system_marked(turns: Sequence[Message], marks: str) -> list[Message]:
    """Mark where the system prompt begins and ends, and where the first other content begins."""
    begin, end, others = tuple(marks)
    marked = list(turns)
    last = max(index for index, turn in enumerate(turns) if turn.system_chars)
    for index, turn in enumerate(turns[: last + 2]):
        system, rest = turn.content[: turn.system_chars], turn.content[turn.system_chars :]
        if rest:  # of a later message, or behind a system prompt in the same one
            rest = _in_front(rest, others)
            others = ""
        if index == last:
            system = system.rstrip() + end + system[len(system.rstrip()) :]
        if system:
            system = _in_front(system, begin)
            begin = ""
        marked[index] = replace(turn, content=system + rest)
    return marked


def _in_front(content: str, mark: str) -> str:
    """Put the mark behind the content's leading white space, where trimming does not matter."""
    start = len(content) - len(content.lstrip())
    return content[:start] + mark + content[start:]


def _probe(*roles: str) -> list[Message]:
    return [Message(role, _PROBES[role]) for role in roles]
