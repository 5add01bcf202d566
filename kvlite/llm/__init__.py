"""The door: a model that answers from Python inside a KV budget. The commands start from it too. Loads no torch."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kvlite.errors import UsageError
from kvlite.llm.answer import (
    BATCH_MAX_TOKENS,
    CHAT_MAX_TOKENS,
    Answer,
    AnswerSettings,
    OneCall,
    TextStream,
    stream_answers,
)
from kvlite.llm.banner import banner, welcome
from kvlite.llm.conversation import Conversation
from kvlite.llm.spec import BatchSize, RunSpec, options_from
from kvlite.llm.text_model import Allocated, TextModel, Told
from kvlite.options import AnswerOptions, BatchOptions, ModelOptions

if TYPE_CHECKING:
    from kvlite.engine.engine import Engine
    from kvlite.memory.counts import KVCounts
    from kvlite.memory.fit import Fit
    from kvlite.memory.plan import CachePlan
    from kvlite.record.recorder import Recorder
    from kvlite.text.template import Encoded

Prompt = str | Sequence[Mapping[str, object]]
"""Text, which is one message of the user, or a list of `{"role", "content"}`."""


class LLM:
    """A loaded model and its KV cache, allocated once for one conversation, or for a batch whose rows share the budget.

    `model` is an alias, `org/name`, a folder or a GGUF file; `options` are the fields of `ModelOptions`. Without
    `batch_size` the cache is one conversation's, and `generate` makes it a batch's, `chat` a conversation's again; with
    one (or `auto`) it starts as a batch's. `say` is told in one line each what a command would write to stderr.
    Raises the KvliteError that says what is wrong.
    """

    def __init__(
        self,
        model: str | Path | TextModel,
        *,
        batch_size: BatchSize | None = None,
        say: Callable[[str], None] | None = None,
        **options: Any,
    ) -> None:
        if batch_size is not None:  # read as the command line's
            word = options_from(BatchOptions, {"input": "-", "batch_size": str(batch_size)}).batch_size
            batch_size = "auto" if word == "auto" else int(word)
        if say is not None and not callable(say):
            raise UsageError(f"say is {say!r:.80}; give a function that takes a line of text, such as print")
        if isinstance(model, TextModel):
            assert not options, "options are for a model that is loaded here"
        else:
            name = str(model.absolute()) if isinstance(model, Path) else model  # a relative one may look like org/name
            words = options_from(ModelOptions, {"model": name, **options})
            model = TextModel.load(RunSpec.of(words), Told(say))
        self._model: TextModel | None = model
        self._batch_size: BatchSize = batch_size or "auto"
        self._allocated: Allocated | None = None
        self._conversation: Conversation | None = None
        self._stream: TextStream | None = None
        self._one_call = OneCall()
        self._allocate(batch_size)

    def __enter__(self) -> Self:
        _ = self.model  # raises where this is closed
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        """The model, what its weights are held in, its cache, the policy and the device, in one line."""
        return banner(self.model, self._held)

    @property
    def welcome(self) -> str:
        """The model and what it remembers, in fewer words."""
        return welcome(self.model, self._held)

    def generate(
        self, prompts: str | Sequence[Prompt], *, system: str | None = None, raw: bool = False, **answer: Any
    ) -> list[Answer]:
        """Answer every prompt, as many at once as the budget has rows, in the order they were given.

        A prompt goes through the chat template unless `raw`. `answer` are the fields of
        `kvlite.options.AnswerOptions`: max_tokens, stop, temperature, seed, ... over what the model's
        generation_config.json asks for. Raises the error of the first answer that fails.
        """
        asked = [prompts] if isinstance(prompts, str) else _listed("prompts", prompts, "prompts")
        answers: dict[str, Answer] = {}
        with self._one_call:
            text = self.model.text
            settings = self._settings(answer, max_tokens=BATCH_MAX_TOKENS)
            encoded = [self._encode(f"prompt {number}", each, system, raw=raw) for number, each in enumerate(asked, 1)]
            longest = max((len(each.ids) for each in encoded), default=1) + (settings.max_tokens or 0)
            engine = self._engine_for(self._batch_size, longest, len(encoded))
            requests = (
                (
                    settings.request(str(number), each, text, row=None, number=number),
                    text.answer(each, settings.stop, settings.min_tokens),
                )
                for number, each in enumerate(encoded)
            )
            with closing(stream_answers(engine, requests)) as events:
                for name, event in events:
                    if isinstance(event, Answer):
                        if event.completion.error is not None:
                            raise event.completion.error
                        answers[name] = event
        return [answers[str(number)] for number in range(len(encoded))]

    def chat(self, messages: Prompt, **answer: Any) -> Answer:
        """Answer a conversation. Messages that extend those of the last call and its answer are fed alone."""
        with self._one_call:
            stream = self.stream(messages, **answer)
            for _ in stream:
                pass
        assert stream.answer is not None, "a stream ends with its answer"
        return stream.answer

    def stream(self, messages: Prompt, **answer: Any) -> TextStream:
        """As `chat`, but the answer comes as pieces of text; thinking is left out of them."""
        settings = self._settings(answer)
        is_text = isinstance(messages, str)
        asked = [{"role": "user", "content": messages}] if is_text else _listed("messages", messages, "messages")
        with self._one_call:
            engine = self._engine_for(None)
            if self._conversation is None:
                self._conversation = Conversation(engine, self.model.text)
            self._stream = TextStream(self._conversation.ask(asked, settings), self._one_call)
            return self._stream

    def counts(self) -> KVCounts:
        """Bytes and tokens of the cache now, summed over its rows."""
        return self.engine.rows.total_counts()

    @property
    def plan(self) -> CachePlan:
        """The cache as it was planned and allocated: rows, slots, bytes."""
        return self.engine.plan

    @property
    def model(self) -> TextModel:
        """The loaded model. Raises UsageError once this is closed."""
        if self._model is None:
            raise UsageError("this LLM is closed; open another")
        return self._model

    @property
    def engine(self) -> Engine:
        """The engine that the cache of now belongs to."""
        return self._held.engine

    def predicted(self) -> dict[str, int]:
        """Bytes by term, as `kvlite plan` predicts them."""
        return self._held.predicted()

    def record(self, recorder: Recorder, budget_source: str) -> None:
        """Note in a run record which model this is, what was predicted, and the cache there is."""
        from kvlite.engine.memory_report import EngineMemory

        recorder.opened(self.model.identity(), self.predicted(), EngineMemory(self.engine), budget_source)

    def adopt(self, spec: RunSpec, fit: Fit) -> None:
        """Go on under another budget or policy: the engine has its cache already."""
        self._model, held = replace(self.model, spec=spec), self._held
        self._allocated = replace(held, fit=fit)

    def close(self) -> None:
        """Free the cache and the weights; what was answered stays."""
        with self._one_call:
            if self._stream is not None:
                self._stream.close("this LLM is closed; open another")
            self._model = self._allocated = self._conversation = None
            gc.collect()

    @property
    def _held(self) -> Allocated:
        _ = self.model
        if self._allocated is None:  # the memory for it ran out between two calls
            self._allocate(None)
        assert self._allocated is not None
        return self._allocated

    def _allocate(self, batch_size: BatchSize | None, slots: int | None = None, lines: int = 1) -> None:
        self._allocated = self._conversation = None  # the old cache first: both are never there together
        self._allocated = self.model.allocate(batch_size, slots, lines)

    def _engine_for(self, batch_size: BatchSize | None, slots: int | None = None, lines: int = 1) -> Engine:
        if self._stream is not None:
            self._stream.close("another call took the model; read a stream to its end before the next call")
        held = self._allocated
        if held is None or held.batch_size != batch_size:
            self._allocate(batch_size, slots, lines)
        elif slots is not None:
            held.engine.rows.resize(held.fit.rows(self.model.spec.budget, slots, lines))
        return self.engine

    def _settings(self, given: Mapping[str, Any], max_tokens: int = CHAT_MAX_TOKENS) -> AnswerSettings:
        if isinstance(schema := given.get("json_schema"), Mapping):
            given = {**given, "json_schema": json.dumps(schema)}
        if isinstance(biases := given.get("logit_bias"), Mapping):
            given = {**given, "logit_bias": [f"{token}={bias}" for token, bias in biases.items()]}
        model, options = self.model, options_from(AnswerOptions, given, without=("system",))
        pins = model.spec.options.pin_system
        return AnswerSettings.of(model.generation, options, pin_system=pins, max_tokens=max_tokens)

    def _encode(self, name: str, prompt: Prompt, system: str | None, *, raw: bool) -> Encoded:
        text = self.model.text
        if not isinstance(prompt, str):
            if raw or system is not None:
                raise UsageError("raw and system are for prompts that are text; these are messages")
            return text.conversation(_listed(name, prompt, "messages"))
        if raw and system is not None:
            raise UsageError("raw contradicts system: without a chat template nothing sets the system prompt apart")
        return text.raw(prompt) if raw else text.prompt(prompt, system=system)


def _listed(name: str, given: Any, kind: str) -> list[Any]:
    """`given` as a list. Raises UsageError where it holds nothing one by one, or is one thing itself."""
    if isinstance(given, (bytes, Mapping)) or not isinstance(given, Iterable):
        raise UsageError(f"{name}: {given!r:.80} is neither text nor a list of {kind}; give one of them")
    return [*given]
