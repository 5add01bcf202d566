"""One answer or a conversation, as `run` and `chat` ask for it: the options, the model opened and recorded."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from kvlite.cli.prompts import typed
from kvlite.cli.recording import start_recorder
from kvlite.errors import UsageError

if TYPE_CHECKING:
    from kvlite.catalog.files import ModelFiles
    from kvlite.chat.single_turn import AnswerFormat
    from kvlite.cli.invocation import Invocation
    from kvlite.console import Console
    from kvlite.deadline import Deadline
    from kvlite.llm import LLM
    from kvlite.llm.answer import AnswerSettings
    from kvlite.llm.spec import RunSpec
    from kvlite.options import AnswerOptions, ModelOptions, OutputOptions
    from kvlite.record.recorder import Recorder


@dataclass(frozen=True, slots=True)
class Answering:
    """The options of a model and of its answers; `budget_source` says where the budget came from."""

    options: ModelOptions
    answer: AnswerOptions
    report: str
    budget_source: str
    console: Console

    @classmethod
    def of(cls, options: ModelOptions, answer: AnswerOptions, output: OutputOptions, call: Invocation) -> Self:
        """Take what was given. Raises UsageError on sampling out of range, and on text that is none."""
        from kvlite.llm.answer import sampling_of

        sampling_of(answer)
        typed(answer.system or "", "--system")
        for text in answer.stop:
            typed(text, "--stop")
        return cls(options, answer, output.report, call.sources["kv_budget"], call.console)

    def settings(self, llm: LLM) -> AnswerSettings:
        """Sampling and end of answers: as given, else as the model asks for."""
        from kvlite.llm.answer import CHAT_MAX_TOKENS, AnswerSettings

        pins = self.options.pin_system
        return AnswerSettings.of(llm.model.sampling, self.answer, max_tokens=CHAT_MAX_TOKENS, pin_system=pins)

    def spec(self) -> RunSpec:
        """The options as values. Raises UsageError on a word that is none, ModelNotFound on such a model."""
        from kvlite.llm.spec import RunSpec

        return RunSpec.of(self.options)

    def open(self, spec: RunSpec, recorder: Recorder, files: ModelFiles | None = None) -> LLM:
        """Load the model, of which the `files` may be found already, make its cache, and note both in the record."""
        from kvlite.llm import LLM
        from kvlite.llm.fast_import import import_engine
        from kvlite.llm.text_model import TextModel

        import_engine()
        llm = LLM(TextModel.load(spec, self.console, files))
        llm.record(recorder, self.budget_source)
        self.console.note(str(llm))
        return llm


def answer_once(
    asked: Answering, prompt: str, output: AnswerFormat, deadline: Deadline, *, raw: bool = False, command: str = "run"
) -> None:
    """Open the model and print its answer to one prompt; `command` is what the record calls it."""
    from kvlite.chat.single_turn import SingleTurn

    if raw and asked.answer.system is not None:
        raise UsageError("--raw contradicts --system: without a chat template nothing sets the system prompt apart")
    out = asked.console
    with start_recorder(command, asked.report, out) as recorder:
        llm = asked.open(asked.spec(), recorder)
        deadline.check()
        text = llm.model.text
        encoded = text.raw(prompt) if raw else text.prompt(prompt, system=asked.answer.system)
        for note in text.notes:
            out.note(note)
        turn = SingleTurn(llm.engine, text, asked.settings(llm), output, out)
        turn.answer(encoded, llm.model.name, deadline, recorder)


def has_user() -> bool:
    """True where somebody is there to talk: stdin is a terminal."""
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()
