"""The settings of a batch: values only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from kvlite.batch.batch_run import ItemLimits
from kvlite.batch.item import Form, Json
from kvlite.batch.prepare import Defaults
from kvlite.batch.source import Input
from kvlite.console import ProgressStyle
from kvlite.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """All that is asked of a batch.

    `output` None is stdout, or a file named after the input; `form` None mirrors each line; `resume` to `retry_errors`
    say what becomes of records that are in the file. `argv` is the command that asked all this, `budget_source` where
    its KV budget came from. Raises UsageError where the summary could not be written.
    """

    input: Input
    limits: ItemLimits
    defaults: Defaults
    output: str | None = None
    form: Form | None = None
    ordered: bool = False
    resume: bool = True
    force_resume: bool = False
    overwrite: bool = False
    retry_errors: bool = False
    max_time_s: float | None = None
    max_errors: int | None = None
    summary: str | None = None
    progress: ProgressStyle = "auto"
    argv: tuple[str, ...] = ()
    budget_source: str = "default"

    def __post_init__(self) -> None:
        path = Path(self.summary) if self.summary is not None else None
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            what = "a folder" if path.is_dir() else "no such folder"
            raise UsageError(f"--summary {self.summary}: {what}; give a file's name")

    def params(self) -> Json:
        """The settings that change the answers, as the user stated them, but for those of model and cache."""
        defaults = asdict(self.defaults)
        reader = self.input.reader
        return {
            **defaults.pop("sampling"),
            **defaults,
            "format": reader.layout,
            "escape": reader.escape,
            "prompt_column": reader.prompt_column,
            "out_format": self.form or "mirrored",
        }
