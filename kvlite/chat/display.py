"""An answer on the screen as it comes, or whole in the form asked for, and the lines about it and the cache."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvlite.chat.gauge import full_heads
from kvlite.chat.interrupt import Interrupts
from kvlite.errors import Interrupted, UsageError
from kvlite.llm import openai
from kvlite.llm.answer import CHAT_MAX_TOKENS, Answer, AnswerSettings, stream_answer
from kvlite.llm.conversation import ROW
from kvlite.memory.format import human_bytes

if TYPE_CHECKING:
    from kvlite.chat.screen import Screen
    from kvlite.console import Console
    from kvlite.deadline import Deadline
    from kvlite.llm import LLM
    from kvlite.record.recorder import Recorder
    from kvlite.text.stream import Piece
    from kvlite.text.template import Encoded

# The first fenced code block, which may lack its end.
_CODE_BLOCK = re.compile(r"^[ \t]*(?P<fence>`{3,}|~{3,})[^\n]*\n(?P<code>.*?)(?:^[ \t]*(?P=fence)|\Z)", re.M | re.S)


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """The form in which an answer is printed. Raises UsageError on forms that exclude each other."""

    extracts: bool = False
    as_json: bool = False
    shows_thinking: bool = False
    shows_time: bool = False

    def __post_init__(self) -> None:
        if self.extracts and self.as_json:
            raise UsageError("--extract contradicts --json; give one of them")

    @property
    def streams(self) -> bool:
        """True where the answer is printed as it comes; the other forms need the whole."""
        return not (self.extracts or self.as_json)


class Display:
    """Answers on the screen as they come, text on stdout and thinking on stderr, each noted in the run record.

    With a `screen` answers are drawn there.
    """

    def __init__(self, console: Console, recorder: Recorder, form: AnswerFormat, screen: Screen | None = None) -> None:
        self.console = console
        self.form = form
        self.screen = screen
        self.recorder = recorder
        self._open: Callable[[str], None] | None = None  # writes on where the last line has no end yet
        self._has_told_eviction = False

    def show(self, events: Generator[Piece | Answer], interrupts: Interrupts, cancel: Callable[[], None]) -> Answer:
        """Show an answer as it comes, and return it; Ctrl-C calls `cancel`, which ends it early."""
        drawing = nullcontext() if self.screen is None else self.screen.drawing()
        with interrupts.calling(cancel), closing(events), drawing:
            try:
                for event in events:
                    if interrupts.pressed:  # perhaps before there was anything to cancel
                        cancel()
                    if isinstance(event, Answer):
                        self.recorder.answered(event.report(), event.kv)
                        return event
                    self._show_piece(event)
                    self.recorder.sample()
            finally:
                self._end_line()
                if self.screen is not None and interrupts.pressed:
                    self.screen.lines.ahead.unsend()
        raise AssertionError("an answer ends with an Answer")

    def tell(self, answer: Answer) -> None:
        """Warn where the answer was cut short by lack of room or the default limit, and tell of the first eviction."""
        done, kv = answer.completion, answer.kv
        why = done.cut_short
        if why is None and done.finish_reason == "length" and answer.completion_tokens == CHAT_MAX_TOKENS:
            why = f"it has {CHAT_MAX_TOKENS:,} tokens; --max-tokens, in a chat /set max_tokens=N, sets another limit"
        if why is not None:
            self.console.warn(f"the answer was cut short: {why}")
        if kv.tokens_evicted and not self._has_told_eviction:
            self._has_told_eviction = True
            full = full_heads(kv)
            self.console.note(
                f"the KV cache of {human_bytes(kv.reserved_bytes)} keeps {kv.tokens_kept:,} of {kv.tokens_seen:,} "
                f"tokens by policy {kv.policy}; the model no longer sees the other {kv.tokens_evicted:,}"
                + (f" ({full}; the others, which need more, still have room)" if full else "")
            )

    def finish(self, answer: Answer, model: str) -> None:
        """Print the forms that need the whole of an answer shown before, and the lines after it."""
        if self.form.as_json:
            usage = openai.usage(answer.prompt_tokens, answer.completion_tokens)
            choices, counted = [openai.choice(answer)], openai.counted(answer)
            self.console.json(openai.completion(answer.completion.request_id, model, choices, usage, counted))
        elif self.form.extracts:
            block = _CODE_BLOCK.search(answer.text)
            if block is None:
                self.console.warn("the answer has no code block; this is all of it")
            text = answer.text if block is None else block["code"]
            self.console.answer(text if text.endswith("\n") else f"{text}\n")
        if self.form.shows_time:
            self.console.aside(f"{answer_line(answer)}\n")
        self.tell(answer)

    def _show_piece(self, piece: Piece) -> None:
        if self.screen is not None:
            self.screen.show(piece.text, is_thinking=piece.thinking, shows_thinking=self.form.shows_thinking)
        elif piece.thinking and not self.form.shows_thinking:
            if self.console.has_live_stderr and not self.console.quiet:
                self.console.show_status("thinking …")
        elif piece.thinking or self.form.streams:
            write = self.console.aside if piece.thinking else self.console.answer
            if self._open != write:
                self._end_line()
            write(piece.text)
            self._open = None if piece.text.endswith("\n") else write

    def _end_line(self) -> None:
        write, self._open = self._open, None
        if write is not None:
            write("\n")


def answer_prompt(llm: LLM, encoded: Encoded, settings: AnswerSettings, display: Display, deadline: Deadline) -> None:
    """Answer one prompt and print it. Raises Interrupted or TimeLimit after the incomplete answer was printed."""
    engine, text, interrupts = llm.engine, llm.model.text, Interrupts()
    request = settings.request(f"chatcmpl-{uuid.uuid4().hex}", encoded, text, row=ROW)

    def cancel() -> None:
        engine.cancel(request.id)

    events = stream_answer(engine, request, text.answer(encoded, settings.stop, settings.min_tokens))
    with deadline.calling(cancel):
        display.finish(display.show(events, interrupts, cancel), llm.model.name)
        if interrupts.pressed:
            raise Interrupted("interrupted; the answer is incomplete")


def answer_line(answer: Answer) -> str:
    """Write the line after an answer: its length, its speed, bytes in the cache, tokens evicted."""
    timing, kv, evicted = answer.completion.timing, answer.kv, answer.completion.evicted
    parts = [
        f"{answer.completion_tokens:,} tok",
        f"{timing.tok_s:.1f} tok/s",
        f"TTFT {timing.ttft_s:.1f} s",
        f"KV {human_bytes(kv.live_bytes)}",
        *([f"evicted {evicted:,} tok"] if evicted else []),
        *([] if answer.finish_reason == "stop" else [str(answer.finish_reason)]),
    ]
    return " · ".join(parts)
