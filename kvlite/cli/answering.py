"""What `run` and `chat` share: the answer's options, the model opened and recorded, one prompt answered."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from kvlite.cli.options import sampling
from kvlite.cli.prompts import typed
from kvlite.cli.recording import start_recorder
from kvlite.errors import UsageError

if TYPE_CHECKING:
    from kvlite.catalog.files import ModelFiles
    from kvlite.catalog.names import ModelRef
    from kvlite.chat.once import Output
    from kvlite.chat.settings import Settings
    from kvlite.cli.invocation import Invocation
    from kvlite.cli.opening import Opened
    from kvlite.console import Console
    from kvlite.deadline import Deadline
    from kvlite.memory.plan import CachePlan
    from kvlite.options import AnswerOptions, ModelOptions, OutputOptions
    from kvlite.record.recorder import Recorder


@dataclass(frozen=True, slots=True)
class Asked:
    """How to answer, as the shared options say; `sampling` holds what was given of it."""

    options: ModelOptions
    answer: AnswerOptions
    sampling: dict[str, Any]
    report: str
    budget_source: str
    console: Console

    @classmethod
    def of(cls, options: ModelOptions, answer: AnswerOptions, output: OutputOptions, call: Invocation) -> Self:
        """What was given. Raises UsageError on sampling out of range, and on text that is none."""
        given = sampling(answer)
        typed(answer.system or "", "--system")
        for text in answer.stop:
            typed(text, "--stop")
        return cls(options, answer, given, output.report, call.sources["kv_budget"], call.console)

    def settings(self, opened: Opened) -> Settings:
        """What was given over what the model asks for."""
        from kvlite.chat.settings import Settings

        limits: dict[str, Any] = {"stop": self.answer.stop, "pin_system": self.options.pin_system}
        if self.answer.max_tokens is not None:
            limits["max_tokens"] = self.answer.max_tokens
        return Settings.of(opened.sampling, self.sampling, **limits)

    def open(self, recorder: Recorder, found: tuple[ModelRef, ModelFiles] | None = None) -> Opened:
        """Load the model, of which the files may be `found` already, build its engine, and note both in the record."""
        from kvlite.cli.opening import open_model
        from kvlite.engine.memory_report import EngineMemory

        opened = open_model(self.options, self.console, found=found)
        recorder.opened(opened.identity(), opened.predicted(), EngineMemory(opened.engine), self.budget_source)
        self.console.note(banner(opened))
        return opened


def answer_once(
    asked: Asked, prompt: str, output: Output, deadline: Deadline, *, raw: bool = False, command: str = "run"
) -> None:
    """Open the model and print its answer to one prompt; `command` is what the record calls it."""
    from kvlite.chat.once import Once

    if raw and asked.answer.system is not None:
        raise UsageError("--raw contradicts --system: without a chat template nothing sets the system prompt apart")
    out = asked.console
    with start_recorder(command, asked.report, out) as recorder:
        opened = asked.open(recorder)
        deadline.check()
        encoded = opened.text.raw(prompt) if raw else opened.text.prompt(prompt, system=asked.answer.system)
        for note in opened.text.notes:
            out.note(note)
        Once(opened.engine, opened.text, asked.settings(opened), output, out).answer(
            encoded, opened.name, deadline, recorder
        )


def banner(opened: Opened) -> str:
    """What runs, how much the cache holds and when the conversation would end, in one line."""
    from kvlite.memory.format import human_bytes

    shape, plan, engine = opened.loaded.shape, opened.plan, opened.engine
    cache = engine.cache
    token_bytes = shape.kv_bytes_per_token(cache.stored)
    state = " + policy state" if plan.policy_state_bytes else ""
    window = ""
    if shape.max_positions:
        capped = plan.capped_by == "window" or opened.options.kv_budget == "full"
        less = ", less room for new ones" if capped and plan.slots < shape.max_positions else ""
        window = f" (window {shape.max_positions:,} tok{less})"
    dtype = opened.loaded.dtype_name
    parts = [
        opened.name if opened.ref.alias in (None, opened.name) else f"{opened.ref.alias} → {opened.name}",
        dtype if opened.loaded.quant == "none" else opened.loaded.quant,
        f"{cache_size(plan)} @ {human_bytes(token_bytes)}{cache.stored.said}{state}{window}",
        f"policy {cache.policy.name}" + ("" if engine.on_full == "evict" else f", {engine.on_full} when full"),
        f"{opened.loaded.device} ({cache.kernels.name}{_steps(opened)})",
    ]
    if opened.loaded.rotations is None and opened.loaded.window is not None:
        parts.append(f"ends at {opened.loaded.window:,} tok: positions cannot move")
    return " · ".join(parts)


def _steps(opened: Opened) -> str:
    """How decode steps run, where it was asked or is not the plain way."""
    step = opened.engine.step
    return f", {step.name} steps" if step.name != "eager" or step.obstacle is not None else ""


def cache_size(plan: CachePlan) -> str:
    """What is reserved of the budget, and the tokens it holds: `KV 395 kB of 400 kB = 4 × 64 tok`."""
    from kvlite.memory.format import human_bytes

    reserved, budget = human_bytes(plan.reserved_bytes), human_bytes(plan.budget_bytes)
    rows = f"{plan.rows} × " if plan.rows > 1 else ""
    return f"KV {reserved}{'' if reserved == budget else f' of {budget}'} = {rows}{plan.slots:,} tok"


def has_user() -> bool:
    """Whether somebody is there to talk: stdin is a terminal."""
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()
