"""The options of a batch, which all of its parts read, and the forms of its lines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from kvlite.flags import argument, option
from kvlite.options import model_option

Form = Literal["openai", "simple", "text"]
"""The shape of a line, in and out."""

_of_input, _of_output, _of_run = (partial(option, heading=heading) for heading in ("Input", "Output", "Run"))


def read_seconds(value: float) -> float:
    """Seconds, above zero."""
    if not 0 < value < math.inf:  # NaN too
        raise ValueError(f"{value} is no time; give seconds above 0")
    return value


def read_batch_size(value: str) -> str:
    """The word auto, or a number of rows."""
    if value != "auto" and not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= 65536):
        raise ValueError(f"{value!r} is no batch size; give auto or a number from 1 to 65536")
    return value


def read_file_name(value: str) -> str:
    """The path of a file that can be there: no folder, and in one."""
    if Path(value).is_dir() or not Path(value).parent.is_dir():
        what = "a folder" if Path(value).is_dir() else "no such folder"
        raise ValueError(f"{value}: {what}; give a file's name")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """The input of a batch, its output, and the limits of the run.

    `out_format` None mirrors each line; `resume` to `retry_errors` say what becomes of records that are in the file.
    """

    input: str = argument(metavar="INPUT", help="JSON lines, plain lines or CSV; - is stdin.")
    model: str | None = model_option()

    output: str | None = _of_output(
        None,
        "-o",
        metavar="PATH|-",
        from_settings=False,
        shown_default="stdout if redirected, else <input>.out.jsonl",
        help="Where the records go.",
    )
    format: Literal["auto", "openai", "simple", "text", "csv"] = _of_input(
        "auto", help="auto goes by the name (.csv, .txt), else JSON lines, their form told line by line."
    )
    escape: bool = _of_input(False, help="In plain lines, \\n stands for a newline.")
    prompt_column: str = _of_input("prompt", metavar="NAME", help="The CSV column to answer.")
    skip: int = _of_input(0, metavar="N", min=0, from_settings=False, help="Leave out the first N records.")
    limit: int | None = _of_input(None, metavar="N", min=0, from_settings=False, help="Take at most N records.")
    shard: str | None = _of_input(
        None,
        metavar="I/N",
        from_settings=False,
        help="Take the I-th of N shares of the ids, from 1/N; before --skip and --limit.",
    )

    out_format: Literal["openai", "simple", "text"] | None = _of_output(
        None,
        shown_default="as each line came",
        help="text is one answer per line, newlines as \\n, in input order; it cannot be resumed.",
    )
    resume: bool = _of_output(True, help="Go on in an output file that exists, or refuse to.")
    force_resume: bool = _of_output(False, from_settings=False, help="Go on although settings or input have changed.")
    overwrite: bool = _of_output(False, from_settings=False, help="Start an output file that exists over.")
    retry_errors: bool = _of_output(False, from_settings=False, help="Run the failed records of an output file again.")
    ordered: bool = _of_output(False, help="Write records in the order of the input.")

    batch_size: str = _of_run(
        "auto", metavar="auto|N", parse=read_batch_size, help="At most this many answers at once."
    )
    dedupe: bool = _of_run(False, help="Run equal greedy requests once; keeps answers in memory.")
    retries: int = _of_run(1, metavar="N", min=0, help="After out-of-memory, try a record alone this often.")
    timeout: float | None = _of_run(
        None, metavar="SECONDS", parse=read_seconds, help="Fail a record that takes longer."
    )
    max_time: float | None = _of_run(
        None, metavar="SECONDS", parse=read_seconds, help="Stop after this long (exit 124)."
    )
    max_errors: int | None = _of_run(None, metavar="N", min=1, help="Stop at N failed records (exit 5).")
    fail_fast: bool = _of_run(False, help="Stop at the first failed record.")
    dry_run: bool = _of_run(
        False, from_settings=False, help="Check the input, count its tokens and plan the memory; load no weights."
    )
    progress: Literal["auto", "bar", "lines", "none"] = _of_run("auto", help="How stderr tells how far it is.")
    summary: str | None = _of_run(
        None, metavar="PATH", from_settings=False, parse=read_file_name, help="Write the counts at the end as JSON."
    )
