"""The model that a batch was given: opened for its lines, or only planned for a dry run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvlite.batch.item import Json
from kvlite.llm import LLM
from kvlite.llm.spec import BatchSize, RunSpec, find_device
from kvlite.llm.text_model import TextModel, import_engine
from kvlite.text.template import ChatText

if TYPE_CHECKING:
    from kvlite.console import Console
    from kvlite.memory.format import SlotFormat
    from kvlite.memory.plan import CachePlan
    from kvlite.record.recorder import Recorder

# fmt: off
_PARAMS = (
    "kv_budget", "kv_per_seq", "kv_policy", "kv_dtype", "profile", "on_full",
    "prefill_chunk", "quant", "dtype", "think", "fuse",
    "kernels", "capture", "pin_system",
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Model:
    """The model that was chosen; nothing is loaded yet.

    `required` is the only model that lines may name, None where a flag named one and they may name any.
    `budget_source` says where its KV budget came from.
    """

    spec: RunSpec
    batch_size: BatchSize
    console: Console
    required: str | None
    budget_source: str

    @property
    def params(self) -> Json:
        """The settings of model and cache."""
        return {name: getattr(self.spec.options, name) for name in _PARAMS} | {"kv_policy": str(self.spec.policy)}

    def identity(self) -> str:
        """The repository and commit, or the folder, that a resumed batch must find again."""
        return self.spec.files(self.console.note).identity()

    def open(self, recorder: Recorder) -> LLM:
        """Load the model, record it, and tell what runs."""
        import_engine()
        llm = LLM(TextModel.load(self.spec, self.console), batch_size=self.batch_size)
        llm.record(recorder, self.budget_source)
        self.console.note(str(llm))
        plan = llm.plan
        is_divisible = plan.slots > llm.engine.policy.min_slots() and not llm.model.loaded.shape.has_state
        if plan.rows < (2 if self.batch_size == "auto" else self.batch_size) and is_divisible:
            held = "one sequence" if plan.rows == 1 else f"{plan.rows} sequences"
            self.console.note(
                f"the budget holds {held} of {plan.slots:,} tok at a time; a smaller --kv-per-seq lets more run at once"
            )
        return llm

    def plan(self) -> tuple[ChatText, SlotFormat, CachePlan]:
        """Load the tokenizer and plan the cache of a run on this machine; the weights are only measured."""
        from kvlite.models.loading import load_tokenizer

        spec = self.spec
        files = spec.files(self.console.note)
        tokenizer = load_tokenizer(files.folder, trust_remote_code=spec.options.trust_remote_code)
        text = ChatText(tokenizer, generation=files.generation, think=spec.options.think, tell=self.console.note)
        device = find_device(spec.options.device)
        fit = spec.fit(files, device, self.batch_size)
        chosen = fit.specs(spec.budget)[0]
        return text, chosen.slot_format, replace(fit, spec=chosen).cache(spec.budget)


ChooseModel = Callable[[str | None], Model]
"""The model for what the lines name (None where they name none), which a flag may overrule."""
