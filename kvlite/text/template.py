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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kvlite.errors import UnsupportedModel, UsageError
from kvlite.text.encoder import Encoder, common_start, control_tokens, head
from kvlite.text.forgery import ForgedStrings, unused_characters
from kvlite.text.grammar import Grammar
from kvlite.text.guide import Guide, Guides
from kvlite.text.messages import Message, checked, with_system_folded
from kvlite.text.rendering import (
    ChatTemplate,
    Renderer,
    Transcript,
    cut_behind,
    is_template_variable,
    role_markers,
    system_span,
    template_source,
)
from kvlite.text.stream import AnswerText, Part, stop_strings, think_tags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt: its ids, the (start, end) spans of ids that hold the system prompt, and notes for reading the answer.

    `stop`: strings that end the answer besides the stop ids; `begins`: the part that the answer begins with.
    """

    ids: tuple[int, ...]
    pins: tuple[tuple[int, int], ...] = ()
    stop: tuple[str, ...] = ()
    begins: Part = Part.ANSWER


class ChatText:
    """Converter between messages and ids for one model; `generation` is its generation_config.json.

    `think` is auto, on or off. `tell` takes messages for the user, each once.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        generation: Mapping[str, object] | None = None,
        think: str = "auto",
        tell: Callable[[str], None] = lambda note: None,
    ) -> None:
        self.tokenizer = tokenizer
        self.think = think
        self.generation = generation or {}
        self._stop_strings = stop_strings(self.generation)
        self._tell = tell
        self._told: set[str] = set()
        source = template_source(tokenizer)
        self._renderer: Renderer = ChatTemplate(tokenizer, source) if source else Transcript()
        self._has_template = bool(source)
        self._tags = think_tags(tokenizer)
        tags = {self._tags.open, self._tags.close} if self._tags else set()
        controls = control_tokens(tokenizer, source) - tags
        self._control = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or "(?!)")
        self._forged = ForgedStrings(controls | (role_markers(self._renderer, self._control) - tags))
        self._encoder = Encoder(tokenizer, self._forged)
        self._opening = () if source else self._encoder.opening  # a template writes its own

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end an answer: the model's, the tokenizer's, and the one the template writes behind answers."""
        named = self.generation.get("eos_token_id")
        ids = set(named if isinstance(named, list) else [named])
        ids.add(self.tokenizer.eos_token_id)
        end = self._end_of_turn()
        if end is not None:
            ids.add(self.tokenizer.convert_tokens_to_ids(end))
        return frozenset(token_id for token_id in ids if isinstance(token_id, int))

    @property
    def template(self) -> str:
        """The chat template as it is written; empty where the model has none."""
        return self._renderer.source

    def prompt(self, text: str, *, system: str | None = None) -> Encoded:
        """Encode one user message; without a template and a system prompt, the model continues it as plain text."""
        if self._has_template or system:
            head = [{"role": "system", "content": system}] if system else []
            return self.conversation([*head, {"role": "user", "content": text}])
        self._note("this model has no chat template: it continues the prompt as plain text")
        return Encoded(self._opening + self._encoder.encode(self._parts(text)))

    def raw(self, prompt: str) -> Encoded:
        """Encode a prompt in the user's own format: special tokens are parsed, BOS stands in front once."""
        ids = self._encoder.encode([prompt])
        opening = self._encoder.opening
        return Encoded(ids if ids[: len(opening)] == opening else opening + ids)

    def conversation(
        self,
        messages: Sequence[object],
        *,
        template_kwargs: Mapping[str, Any] | None = None,
        continues: bool | None = None,
    ) -> Encoded:
        """Encode a whole conversation with the template's prompt for the next answer.

        Where it `continues`, as by default where the assistant has the last word, the answer goes on with that message.
        `template_kwargs` are further variables of the template. Raises UsageError on messages that are malformed or
        that the template refuses.
        """
        turns = checked(messages)
        is_open = turns[-1].role == "assistant"
        if continues and not is_open:
            raise UsageError(
                f"continue_final_message: the last message is of the {turns[-1].role}; give an assistant's"
            )
        continues = is_open if continues is None else continues
        if any(turn.role == "system" for turn in turns) and not self._renderer.has_system_role:
            self._note("this model's chat template has no system role: the system prompt goes into the user's message")
            turns = with_system_folded(turns)
        if not self._has_template:
            self._note("this model has no chat template: messages become a plain transcript of User: and Assistant:")
        variables = self._variables(template_kwargs or {})
        mark, last = tuple(unused_characters(2, [self._renderer.source, *(turn.content for turn in turns)]))
        marked = [replace(turn, content=self._forged.mark(turn.content, mark)) for turn in turns]
        if continues:
            marked[-1] = replace(marked[-1], content=f"{marked[-1].content}{last} ")
        rendered = self._renderer.render(marked, variables, opens=not continues)
        if continues:
            rendered = cut_behind(rendered, last)
        parts = self._forged.split(rendered, mark)
        ids = self._opening + self._encoder.encode(parts)
        pins = self._pins(turns, variables, parts, ids, continues)
        if continues:
            return replace(self._encoded(ids, "", pins), begins=self._part_of(turns[-1].content))
        return self._encoded(ids, parts[-1], pins)

    def turn_starts(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The places in the ids of `conversation(messages)` where the user's messages begin."""
        whole, starts = self.conversation(messages).ids, []
        for index, message in enumerate(messages):
            if message["role"] == "user":
                other = {"role": "user", "content": "1" if message["content"].startswith("0") else "0"}
                starts.append(common_start(self.conversation([*messages[:index], other]).ids, whole))
        return starts

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
        parts = [first, *others]
        return self._encoded(self._encoder.encode(parts, continues=True), parts[-1])

    def written(self, answer: str) -> tuple[int, ...]:
        """Encode an answer that somebody else wrote, to feed where the model would have generated its own."""
        return self._encoder.encode(self._parts(answer), continues=True)

    def answer(self, prompt: Encoded, stop: Sequence[str] = (), min_tokens: int = 0) -> AnswerText:
        """Make the reader of the answer to `prompt`; `stop` are the user's stop strings, beside the model's own."""
        stops = (*prompt.stop, *self._stop_strings, *stop)
        return AnswerText(self.tokenizer, stop=stops, begins=prompt.begins, min_tokens=min_tokens)

    def guide(self, prompt: Encoded, grammar: Grammar) -> Callable[[], Guide]:
        """Make what makes a guide of an answer to `prompt` that follows `grammar`, behind its thinking if there is any.

        Raises UsageError where this model's tokenizer cannot be read for it.
        """
        is_off = self.think == "off" and prompt.begins is Part.START
        return self._guides.of(grammar, Part.ANSWER if is_off else prompt.begins)

    @cached_property
    def _guides(self) -> Guides:
        return Guides(self.tokenizer, self.stop_ids)

    def _note(self, note: str) -> None:
        if note not in self._told:
            self._told.add(note)
            self._tell(note)

    def _parts(self, text: str) -> list[str]:
        """Cut text without a template where it forges a control token or a role marker."""
        mark = unused_characters(1, [text])
        return self._forged.split(self._forged.mark(text, mark), mark)

    def _variables(self, others: Mapping[str, Any]) -> dict[str, Any]:
        """Collect the template's variables; a `think` for which the template has no switch becomes a note."""
        variables = dict(others)
        for name, value in variables.items():
            if not is_template_variable(name, self.tokenizer):
                raise UsageError(f"the template variable {name} is an argument of what renders templates; leave it out")
            if self._forged.spans(json.dumps(value, ensure_ascii=False, default=str)):
                raise UsageError(f"the template variable {name} holds a control token; give plain text")
        switch = self._renderer.think_switch
        if self.think != "auto" and switch:
            variables.setdefault(switch, self.think == "on")
        elif why := self.thinks_anyway:
            self._note(why)
        return variables

    @property
    def thinks_anyway(self) -> str | None:
        """The reason why `think` changes nothing; None where it does, or asks for nothing."""
        if not self._renderer.think_switch and self.think == "on" and self._tags is None:
            return "this model does not think, so think=on changes nothing"
        if not self._renderer.think_switch and self.think == "off" and self._tags is not None:
            return "this model's chat template cannot switch thinking off"
        return None

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

    def _part_of(self, content: str) -> Part:
        """The part of an answer that `content`, its beginning, ends in."""
        if self._tags is None:
            return Part.ANSWER
        _, opening, inside = content.rpartition(self._tags.open)
        return Part.THINKING if opening and self._tags.close not in inside else Part.ANSWER

    def _pins(
        self,
        turns: Sequence[Message],
        variables: Mapping[str, Any],
        parts: list[str],
        ids: tuple[int, ...],
        continues: bool,
    ) -> tuple[tuple[int, int], ...]:
        """Find the span of `ids`, which encode `parts`, that holds the system prompt."""
        if not any(turn.system_chars for turn in turns):
            return ()
        text = self._renderer.render(turns, variables, opens=False) if continues else "".join(parts)
        span = system_span(self._renderer, turns, variables, self._control, text, not continues)
        if span is None:
            self._note("the system prompt cannot be found in what the chat template renders, so it is not pinned")
            return ()
        heads = (self._opening + self._encoder.encode(head(parts, characters)) for characters in span)
        start, end = (common_start(ids_before, ids) for ids_before in heads)
        return ((start if span[0] else 0, end),)

    def _encoded(self, ids: tuple[int, ...], end: str, pins: tuple[tuple[int, int], ...] = ()) -> Encoded:
        begins = Part.ANSWER
        if self._tags is not None:
            begins = Part.THINKING if end.rstrip().endswith(self._tags.open) else Part.START
        return Encoded(ids, pins, () if self._has_template else Transcript.stop, begins)
