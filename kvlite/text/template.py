"""Turn messages into ids through the model's chat template; the only module that knows both template and tokenizer.

Ids once fed are never rendered again: a later turn feeds only what the template writes behind an answer. Some templates
render the history differently later (Qwen3 and DeepSeek-R1 strip the thinking from earlier answers, Llama 3.1 writes
today's date, Mistral moves the system prompt to the last message); the cache is not affected.

No text of a message can forge a control token or another role's turn (forgery.py). In a `--raw` prompt special tokens
are parsed, because there the user writes the prompt format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kvlite.errors import UnsupportedModel, UsageError
from kvlite.text.encoder import Encoder, common_start, control_tokens, head
from kvlite.text.forgery import ForgedStrings, unused_characters
from kvlite.text.messages import Message, checked, with_system_folded
from kvlite.text.rendering import (
    ChatTemplate,
    Renderer,
    Transcript,
    has_system_role,
    role_markers,
    system_span,
    template_source,
    think_switch,
)
from kvlite.text.stream import AnswerText, think_tags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt: its ids, the (start, end) spans of ids that hold the system prompt, and notes for reading the answer.

    `stop`: strings that end the answer besides the stop ids; `thinks`: the model may think first; `opens_thinking`: the
    prompt already opened the thinking.
    """

    ids: tuple[int, ...]
    pins: tuple[tuple[int, int], ...] = ()
    stop: tuple[str, ...] = ()
    thinks: bool = False
    opens_thinking: bool = False


class ChatText:
    """Converter between messages and ids for one model; `generation` is its generation_config.json.

    `think` is auto, on or off. `notes` collects messages for the user, each once; the caller prints them.
    Raises UsageError on another `think`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        generation: Mapping[str, object] | None = None,
        think: str = "auto",
    ) -> None:
        if think not in ("auto", "on", "off"):
            raise UsageError(f"think is {think!r}; give auto, on or off")
        self.tokenizer = tokenizer
        self.think = think
        self.notes: list[str] = []
        self._generation = generation or {}
        source = template_source(tokenizer)
        self._renderer: Renderer = ChatTemplate(tokenizer, source) if source else Transcript()
        self._tags = think_tags(tokenizer)
        controls = control_tokens(tokenizer, source, self._tags)
        self._control = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or "(?!)")
        markers = role_markers(self._renderer, self._control)
        tags = {self._tags.open, self._tags.close} if self._tags else set()
        self._forged = ForgedStrings(controls | (markers - tags))
        self._encoder = Encoder(tokenizer, self._forged)

    @property
    def has_template(self) -> bool:
        """True where the model brings a chat template; without one messages become a transcript."""
        return isinstance(self._renderer, ChatTemplate)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end an answer: the model's, the tokenizer's, and the one the template writes behind answers."""
        named = self._generation.get("eos_token_id")
        ids = set(named if isinstance(named, list) else [named])
        ids.add(self.tokenizer.eos_token_id)
        end = self._end_of_turn()
        if end is not None:
            ids.add(self.tokenizer.convert_tokens_to_ids(end))
        return frozenset(token_id for token_id in ids if isinstance(token_id, int))

    def prompt(self, text: str, *, system: str | None = None) -> Encoded:
        """Encode one user message; without a template and a system prompt, the model continues it as plain text."""
        if self.has_template or system:
            head = [{"role": "system", "content": system}] if system else []
            return self.conversation([*head, {"role": "user", "content": text}])
        self._note("this model has no chat template: it continues the prompt as plain text")
        mark = unused_characters(1, [text])
        parts = self._forged.split(self._forged.mark(text, mark), mark)
        return Encoded(self._encoder.opening + self._encoder.encode(parts))

    def raw(self, prompt: str) -> Encoded:
        """Encode a prompt in the user's own format: special tokens are parsed, BOS stands in front once."""
        ids = self._encoder.encode([prompt])
        opening = self._encoder.opening
        return Encoded(ids if ids[: len(opening)] == opening else opening + ids)

    def conversation(self, messages: Sequence[object], *, template_kwargs: Mapping[str, Any] | None = None) -> Encoded:
        """Encode a whole conversation with the template's prompt for the next answer.

        `template_kwargs` are further variables of the template. Raises UsageError on messages that are malformed or
        that the template refuses.
        """
        turns = checked(messages)
        if any(turn.role == "system" for turn in turns) and not self._has_system_role:
            self._note("this model's chat template has no system role: the system prompt goes into the user's message")
            turns = with_system_folded(turns)
        variables = self._variables(template_kwargs or {})
        opening: tuple[int, ...] = ()
        if not self.has_template:
            self._note("this model has no chat template: messages become a plain transcript of User: and Assistant:")
            opening = self._encoder.opening
        parts = self._rendered(turns, variables)
        ids = self._encoder.encode(parts)
        pins: tuple[tuple[int, int], ...] = ()
        if any(turn.system_chars for turn in turns):
            pins = self._pins(turns, variables, parts, ids)
        pins = tuple((start and start + len(opening), end + len(opening)) for start, end in pins)
        return self._encoded(opening + ids, parts[-1], pins)

    def next_turn(self, user: str, *, ended: bool, thinking: bool = False) -> Encoded:
        """Encode what follows an answer already fed: its end, the user's message, the prompt for the next answer.

        The engine feeds no stop id, so the end of turn always comes from here. `ended`: the model ended its turn
        itself. Otherwise the answer was cut off; where `thinking`, that was inside its thinking, which is closed first.
        Raises UsageError where the template refuses the message, UnsupportedModel where it does not show answers.
        """
        mark = unused_characters(1, [user, self._renderer.source])
        rendered = self._behind_answer(self._forged.mark(user, mark), self._variables({}))
        first, *others = self._forged.split(rendered, mark)
        if ended and self._control.match(first.lstrip()):
            first = first.lstrip()
        if thinking and self._tags:
            first = f"{self._tags.close}\n\n{first}"
        return self._encoded(self._encoder.encode([first, *others], continues=True), [first, *others][-1], ())

    def written(self, answer: str) -> tuple[int, ...]:
        """Encode an answer that somebody else wrote, to feed where the model would have generated its own."""
        mark = unused_characters(1, [answer])
        return self._encoder.encode(self._forged.split(self._forged.mark(answer, mark), mark), continues=True)

    def answer(self, prompt: Encoded, stop: Sequence[str] = ()) -> AnswerText:
        """Make the reader of the answer to `prompt`; `stop` are the user's stop strings."""
        return AnswerText(
            self.tokenizer, stop=(*prompt.stop, *stop), thinks=prompt.thinks, opened=prompt.opens_thinking
        )

    @cached_property
    def _think_switch(self) -> str | None:
        return think_switch(self._renderer.source)

    @cached_property
    def _has_system_role(self) -> bool:
        return has_system_role(self._renderer)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _variables(self, others: Mapping[str, Any]) -> dict[str, Any]:
        """Collect the template's variables; a `think` for which the template has no switch becomes a note."""
        variables = dict(others)
        for name, value in variables.items():
            if self._forged.spans(json.dumps(value, ensure_ascii=False, default=str)):
                raise UsageError(f"the template variable {name} holds a control token; give plain text")
        if self.think != "auto" and self._think_switch:
            variables.setdefault(self._think_switch, self.think == "on")
        elif self.think == "on" and self._tags is None:
            self._note("this model does not think, so think=on changes nothing")
        elif self.think == "off" and self._tags is not None:
            self._note("this model's chat template cannot switch thinking off")
        return variables

    def _rendered(self, turns: Sequence[Message], variables: Mapping[str, Any]) -> list[str]:
        mark = unused_characters(1, [self._renderer.source, *(turn.content for turn in turns)])
        marked = [replace(turn, content=self._forged.mark(turn.content, mark)) for turn in turns]
        return self._forged.split(self._renderer.render(marked, variables), mark)

    def _behind_answer(self, user: str, variables: Mapping[str, Any]) -> str:
        """Render what the template writes behind an answer, up to the prompt for the answer to `user`."""
        answer = "60415926535"  # digits, which templates that change case leave alone
        while answer in user:
            answer += "0"
        # No system prompt: it was fed with the first turn, and some templates would repeat it in the last message.
        turns = [Message("user", "x"), Message("assistant", answer), Message("user", user)]
        _, found, behind = self._renderer.render(turns, variables).partition(answer)
        if not found:
            raise UnsupportedModel("this model's chat template does not show earlier answers; use `kvlite run` instead")
        return behind

    def _end_of_turn(self) -> str | None:
        """Find the control token right behind an answer; None where it also separates thinking from the answer."""
        try:
            end = self._control.match(self._behind_answer("x", {}).lstrip())
        except (UsageError, UnsupportedModel):
            return None
        return None if end is None or (self._tags and end.group() in self._tags.close) else end.group()

    def _pins(
        self, turns: Sequence[Message], variables: Mapping[str, Any], parts: list[str], ids: tuple[int, ...]
    ) -> tuple[tuple[int, int], ...]:
        """Find the span of `ids`, which encode `parts`, that holds the system prompt."""
        span = system_span(self._renderer, turns, variables, self._control)
        if span is None or span.text != "".join(parts):
            self._note("the system prompt cannot be found in what the chat template renders, so it is not pinned")
            return ()
        start, end = (common_start(self._encoder.encode(head(parts, char)), ids) for char in (span.start, span.end))
        return ((start, end),)

    def _encoded(self, ids: tuple[int, ...], end: str, pins: tuple[tuple[int, int], ...]) -> Encoded:
        opens = self._tags is not None and end.rstrip().endswith(self._tags.open)
        stop = () if self.has_template else Transcript.stop
        return Encoded(ids, pins, stop, thinks=self._tags is not None, opens_thinking=opens)
