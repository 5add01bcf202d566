"""One answer or a conversation, as `run` and `chat` ask for it: the options, the model opened and recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvlite.catalog.model_files import ModelFiles
from kvlite.chat.display import AnswerFormat, Display, answer_prompt
from kvlite.cli.invocation import Invocation
from kvlite.deadline import Deadline
from kvlite.engine.request import Sampling
from kvlite.errors import UsageError
from kvlite.llm import LLM
from kvlite.llm.answer import AnswerSettings, check_answer
from kvlite.llm.spec import RunSpec
from kvlite.llm.text_model import TextModel, import_engine
from kvlite.memory.format import human_bytes
from kvlite.options import AnswerOptions, ModelOptions
from kvlite.record.recorder import Recorder

CHAT_SAMPLING = Sampling(temperature=0.7, top_p=0.95, presence_penalty=0.3)
"""The way a chat draws where neither the user nor the model says; the penalty keeps an answer from going in circles."""


@dataclass(frozen=True, slots=True)
class Answering:
    """The options of a model and of its answers, where the run record goes, and the call that gave them.

    Raises UsageError on answers that no model can give: sampling out of range, a grammar that is none.
    """

    options: ModelOptions
    answer: AnswerOptions
    report: str
    call: Invocation

    def __post_init__(self) -> None:
        check_answer(self.answer)

    def settings(self, llm: LLM, *, is_chat: bool = False) -> AnswerSettings:
        """Sampling and end of answers: as given, else as the model asks for, else greedy; a chat samples then."""
        pins, unnamed = self.options.pin_system, CHAT_SAMPLING if is_chat else None
        return AnswerSettings.of(llm.model.generation, self.answer, pin_system=pins, unnamed=unnamed)

    def open(
        self,
        spec: RunSpec,
        recorder: Recorder,
        files: ModelFiles | None = None,
        *,
        is_chat: bool = False,
        doing: Callable[[str], None] = lambda text: None,
    ) -> LLM:
        """Load the model, of which the `files` may be found already, make its cache, and note both in the record.

        What takes long is named to `doing` as it begins.
        """
        doing("PyTorch and transformers")
        import_engine()
        weights = None if files is None else files.weights
        doing("the weights" if weights is None else f"{human_bytes(weights.num_bytes)} of weights")
        model = TextModel.load(spec, self.call.console, files)
        doing("the cache")
        llm = LLM(model)
        llm.record(recorder, self.call.sources["kv_budget"])
        self.call.console.note(llm.welcome if is_chat and not self.call.console.verbose else str(llm))
        return llm


def answer_once(
    asked: Answering, prompt: str, form: AnswerFormat, deadline: Deadline, *, raw: bool = False, command: str = "run"
) -> None:
    """Open the model and print its answer to one prompt; `command` is what the record calls it."""
    if raw and asked.answer.system is not None:
        raise UsageError("--raw contradicts --system: without a chat template nothing sets the system prompt apart")
    with asked.call.start_recorder(command, asked.report) as recorder:
        llm = asked.open(RunSpec.of(asked.options), recorder)
        text = llm.model.text
        encoded = text.raw(prompt) if raw else text.prompt(prompt, system=asked.answer.system)
        answer_prompt(llm, encoded, asked.settings(llm), Display(asked.call.console, recorder, form), deadline)
