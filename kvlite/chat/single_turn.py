"""Answer one prompt and print the answer: `run`, and `chat` without a terminal."""

from __future__ import annotations

import re
import uuid
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from kvlite.chat.display import Display, answer_line, cut_notice, eviction_notice, show_answer
from kvlite.chat.interrupt import Interrupts
from kvlite.deadline import Deadline
from kvlite.errors import Interrupted, UsageError
from kvlite.llm.answer import Answer, AnswerSettings, stream_answer
from kvlite.text import openai

if TYPE_CHECKING:
    from kvlite.console import Console
    from kvlite.engine.engine import Engine
    from kvlite.record.recorder import Recorder
    from kvlite.text.template import ChatText, Encoded

_CODE_BLOCK = re.compile(r"^[ \t]*(?P<fence>`{3,}|~{3,})[^\n]*\n(?P<code>.*?)(?:^[ \t]*(?P=fence)|\Z)", re.M | re.S)


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """The form in which an answer is printed. Raises UsageError on forms that exclude each other."""

    streams: bool = True
    extracts: bool = False
    as_json: bool = False
    shows_thinking: bool = False
    shows_time: bool = False

    def __post_init__(self) -> None:
        if self.extracts and self.as_json:
            raise UsageError("--extract contradicts --json; give one of them")
        if self.streams and (self.extracts or self.as_json):
            raise UsageError("--stream contradicts --json and --extract, which need the whole answer; give one of them")


class SingleTurn:
    """One prompt to answer and print."""

    def __init__(
        self, engine: Engine, text: ChatText, settings: AnswerSettings, output: AnswerFormat, console: Console
    ) -> None:
        self._engine = engine
        self._text = text
        self._settings = settings
        self._output = output
        self._console = console

    def answer(self, encoded: Encoded, model: str, deadline: Deadline, recorder: Recorder) -> None:
        """Answer, print and record. Raises Interrupted or TimeLimit after the incomplete answer was printed."""
        request = self._settings.request(f"chatcmpl-{uuid.uuid4().hex}", encoded, self._text, row=0)
        interrupts = Interrupts()

        def cancel() -> None:
            self._engine.cancel(request.id)

        events = stream_answer(self._engine, request, self._text.answer(encoded, stop=self._settings.stop))
        output = self._output
        display = Display(self._console, shows_thinking=output.shows_thinking, shows_text=output.streams)
        with deadline.calling(cancel):
            answer = show_answer(events, display, interrupts, cancel, recorder)
        recorder.answered(answer.report(), answer.kv)
        self._print(answer, model)
        if interrupts.pressed:
            raise Interrupted("interrupted; the answer is incomplete")
        deadline.check()

    def _print(self, answer: Answer, model: str) -> None:
        if self._output.as_json:
            self._console.json(completion_body(answer, model))
        elif not self._output.streams:
            code = first_code_block(answer.text) if self._output.extracts else None
            if self._output.extracts and code is None:
                self._console.warn("the answer has no code block; this is all of it")
            text = answer.text if code is None else code
            self._console.answer(text if text.endswith("\n") else f"{text}\n")
        if self._output.shows_time:
            self._console.aside(f"{answer_line(answer)}\n")
        if (notice := cut_notice(answer.completion)) is not None:
            self._console.warn(notice)
        if answer.completion.kv.tokens_evicted:
            self._console.note(eviction_notice(answer.completion.kv))


def first_code_block(text: str) -> str | None:
    """Find the content of the first fenced code block, which may lack its end; None without one."""
    match = _CODE_BLOCK.search(text)
    return match["code"] if match else None


def completion_body(answer: Answer, model: str) -> dict[str, object]:
    """Build OpenAI's chat.completion object of the answer, with kvlite's counts under `kvlite`."""
    done = answer.completion
    choices = [openai.choice(answer.text, answer.thinking, str(answer.finish_reason))]
    usage = openai.usage(done.prompt_tokens, len(done.ids))
    counted = openai.counted(answer.seed, done.kv, asdict(done.timing))
    return openai.completion(done.request_id, model, choices, usage, counted)
