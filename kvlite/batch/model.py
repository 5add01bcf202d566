"""The model that a batch was given: opened for its lines, or only planned for a dry run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvlite.batch.item import Json
from kvlite.batch.rows import BatchRows
from kvlite.llm.spec import BatchSize, RunSpec, find_device
from kvlite.llm.text_model import Allocated, TextModel, import_engine
from kvlite.text.template import ChatText

if TYPE_CHECKING:
    from kvlite.console import Console
    from kvlite.memory.fit import Fit
    from kvlite.record.recorder import Recorder

# fmt: off
_PARAMS = (
    "kv_budget", "kv_per_seq", "kv_policy", "kv_dtype", "profile", "on_full",
    "prefill_chunk", "quant", "dtype", "think", "fuse",
    "kernels", "capture", "pin_system", "adapter",
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

    def open(self, recorder: Recorder) -> BatchRows:
        """Load the model; once it has rows it is recorded, and what runs is told. Raises the KvliteError at fault."""
        import_engine()
        model = TextModel.load(self.spec, self.console)

        def opened(allocated: Allocated) -> None:
            from kvlite.engine.memory_report import EngineMemory

            engine = EngineMemory(allocated.engine)
            recorder.opened(model.identity(), allocated.predicted(), engine, self.budget_source)

        return BatchRows(model, self.batch_size, self.console, opened)

    def plan(self) -> tuple[ChatText, Fit]:
        """Load the tokenizer and see what fits this machine; the weights are only measured."""
        from kvlite.models.loading import load_tokenizer

        spec = self.spec
        files = spec.files(self.console.note)
        tokenizer = load_tokenizer(files.folder, trust_remote_code=spec.options.trust_remote_code)
        text = ChatText(tokenizer, generation=files.generation, think=spec.options.think, tell=self.console.note)
        fit = spec.fit(files, find_device(spec.options.device), self.batch_size)
        return text, replace(fit, spec=fit.specs(spec.budget)[0])


ChooseModel = Callable[[str | None], Model]
"""The model for what the lines name (None where they name none), which a flag may overrule."""
