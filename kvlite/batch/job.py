"""The settings of a batch and the model it is given: values only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvlite.batch.batch_run import ItemLimits
from kvlite.batch.item import Form, Json
from kvlite.batch.prepare import Defaults, Terms
from kvlite.batch.source import Input
from kvlite.console import ProgressStyle
from kvlite.errors import UsageError

if TYPE_CHECKING:
    from kvlite.llm import LLM
    from kvlite.memory.format import SlotFormat
    from kvlite.memory.plan import CachePlan
    from kvlite.text.template import ChatText


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """The output file, and the treatment of records that are in it; `form` None mirrors each line."""

    output: str | None = None
    form: Form | None = None
    resume: bool = True
    force_resume: bool = False
    overwrite: bool = False
    retry_errors: bool = False
    ordered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The limits at which the batch stops early, and its progress line and summary."""

    max_time_s: float | None = None
    max_errors: int | None = None
    summary: str | None = None
    progress: ProgressStyle = "auto"

    def check(self) -> None:
        """Raises UsageError when the summary could not be written."""
        path = Path(self.summary) if self.summary is not None else None
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            what = "a folder" if path.is_dir() else "no such folder"
            raise UsageError(f"--summary {self.summary}: {what}; give a file's name")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """All that is asked; `argv` is the command that asked it, `budget_source` where its KV budget came from."""

    input: Input
    writing: Writing
    ending: Ending
    limits: ItemLimits
    defaults: Defaults
    argv: tuple[str, ...]
    budget_source: str = "default"

    def params(self, model: Model) -> Json:
        """The settings that change the answers, as the user stated them; all records of a file have the same."""
        defaults = asdict(self.defaults)
        sampling = defaults.pop("sampling")
        reader = self.input.reader
        return {
            **model.params,
            **sampling,
            **defaults,
            "format": reader.layout,
            "escape": reader.escape,
            "prompt_column": reader.prompt_column,
            "out_format": self.writing.form or "mirrored",
        }


@dataclass(frozen=True, slots=True)
class Planned:
    """A model of which only the tokenizer is loaded, and the cache it would get, whose slots are `stored`.

    `is_provisional` says that the weights, once loaded, may show that such slots are too coarse for the model.
    """

    name: str
    text: ChatText
    plan: CachePlan
    stored: SlotFormat
    is_provisional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The model that was chosen and how to get at it; nothing is loaded yet.

    `params` are the settings of model and cache. `identity` gives the repository and commit, or the folder. `note` is
    what to say about the choice.
    """

    terms: Terms
    params: Json
    identity: Callable[[], str]
    open: Callable[[], LLM]
    plan: Callable[[], Planned]
    note: str | None = None


ChooseModel = Callable[[str | None], Model]
"""The model for what the lines name (None where they name none), which a flag may overrule."""
