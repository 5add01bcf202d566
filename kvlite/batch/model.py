"""The model that a batch was given: opened for its lines, or only planned for a dry run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from kvlite.batch.item import Json
from kvlite.batch.rows import BatchRows
from kvlite.llm.spec import BatchSize, RunSpec, find_device
from kvlite.llm.text_model import Allocated, TextModel, Told, import_engine
from kvlite.text.template import ChatText

if TYPE_CHECKING:
    from kvlite.console import Console
    from kvlite.memory.fit import Fit
    from kvlite.record.recorder import ReadableEngine
    from kvlite.record.schema import ModelIdentity

# fmt: off
_PARAMS = (
    "kv_budget", "kv_per_seq", "kv_policy", "kv_dtype", "profile", "on_full",
    "prefill_chunk", "quant", "dtype", "think", "fuse",
    "kernels", "capture", "speculate", "pin_system", "adapter",
)
# fmt: on


class Opens(Protocol):
    """The listener that is told of a model with rows: a kvlite.record.recorder.Recorder."""

    def opened(
        self, identity: ModelIdentity, predicted: Mapping[str, int], engine: ReadableEngine, source: str
    ) -> None:
        """Note model and cache."""


@dataclass(frozen=True, slots=True)
class Model:
    """The model that was chosen; nothing is loaded yet.

    `required` is the only model that lines may name, None where a flag named one and they may name any.
    `budget_source` says where its KV budget came from.
    """

    spec: RunSpec
    batch_size: BatchSize
    console: Console | Told
    required: str | None
    budget_source: str

    @property
    def params(self) -> Json:
        """The settings of model and cache."""
        return {name: getattr(self.spec.options, name) for name in _PARAMS} | {"kv_policy": str(self.spec.policy)}

    def identity(self) -> str:
        """The repository and commit, or the folder, that a resumed batch must find again."""
        return self.spec.files(self.console.note).identity()

    def open(self, recorder: Opens) -> BatchRows:
        """Load the model; once it has rows it is recorded, and what runs is told. Raises the KvliteError at fault."""
        return self.rows(self.load(), recorder)

    def load(self) -> TextModel:
        """Load weights and tokenizer."""
        import_engine()
        return TextModel.load(self.spec, self.console)

    def rows(self, model: TextModel, recorder: Opens, sharers: int = 1) -> BatchRows:
        """The rows of the model, with what memory is free now; as many as `sharers` divide that among themselves."""

        def opened(allocated: Allocated) -> None:
            from kvlite.engine.memory_report import EngineMemory

            engine = EngineMemory(allocated.engine)
            recorder.opened(model.identity(), allocated.predicted(), engine, self.budget_source)

        return BatchRows(model, self.batch_size, self.console, opened, sharers)

    def plan(self) -> tuple[ChatText, Fit]:
        """Load the tokenizer and see what fits this machine; the weights are only measured."""
        from kvlite.models.loading import load_tokenizer

        spec = self.spec
        files = spec.files(self.console.note)
        spec.shape(files)  # refused before the tokenizer is read, which may not be there
        tokenizer = load_tokenizer(files.folder, trust_remote_code=spec.options.trust_remote_code)
        text = ChatText(tokenizer, generation=files.generation, think=spec.options.think, tell=self.console.note)
        fit = spec.fit(files, find_device(spec.options.device), self.batch_size)
        return text, replace(fit, spec=fit.specs(spec.budget)[0])


ChooseModel = Callable[[str | None], Model]
"""The model for what the lines name (None where they name none), which a flag may overrule."""
