"""`kvlite batch`: many prompts from a file or a pipe, one record each."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from kvlite.cli.invocation import UNNAMED, Invocation, model_option
from kvlite.cli.signature import only, without
from kvlite.errors import UsageError
from kvlite.flags import argument, option
from kvlite.options import AnswerOptions, ModelOptions, OutputOptions

if TYPE_CHECKING:
    from kvlite.batch.job import BatchJob
    from kvlite.batch.model import Model
    from kvlite.llm.spec import BatchSize

_of_input, _of_output, _of_run = (partial(option, heading=heading) for heading in ("Input", "Output", "Run"))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """The input of a batch, its output, and the limits of the run."""

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

    batch_size: str = _of_run("auto", metavar="auto|N", help="At most this many answers at once.")
    dedupe: bool = _of_run(False, help="Run equal greedy requests once; keeps answers in memory.")
    retries: int = _of_run(1, metavar="N", min=0, help="After out-of-memory, try a record alone this often.")
    timeout: float | None = _of_run(None, metavar="SECONDS", help="Fail a record that takes longer.")
    max_time: float | None = _of_run(None, metavar="SECONDS", help="Stop after this long (exit 124).")
    max_errors: int | None = _of_run(None, metavar="N", min=1, help="Stop at N failed records (exit 5).")
    fail_fast: bool = _of_run(False, help="Stop at the first failed record.")
    dry_run: bool = _of_run(
        False, from_settings=False, help="Check the input, count its tokens and plan the memory; load no weights."
    )
    progress: Literal["auto", "bar", "lines", "none"] = _of_run("auto", help="How stderr tells how far it is.")
    summary: str | None = _of_run(
        None, metavar="PATH", from_settings=False, help="Write the counts at the end as JSON."
    )


def batch(
    given: BatchOptions,
    answer: AnswerOptions,
    options: Annotated[ModelOptions, without("model")],
    output: Annotated[OutputOptions, only("report")],
    call: Invocation,
) -> None:
    """Answer every line of INPUT; killed at any moment, the same command goes on where it stopped.

    What a line says for itself (temperature, max_tokens, stop, ...) wins over the flags here; an answer that nobody
    limits ends after 1,024 tokens. Without -m the lines name the model. Exit code 5 means that some lines failed: their
    records say why.
    """
    job = _job(given, answer, options, call)
    batch_size = _batch_size(given.batch_size)

    def choose(from_lines: str | None) -> Model:
        from kvlite.batch.model import Model

        named = from_lines if given.model is None else given.model
        chosen = call.with_model(options if named is None else replace(options, model=named))
        note = UNNAMED if named is None and not call.program.default_model else None
        return Model.of(chosen, batch_size, call.console, is_named=given.model is not None, note=note)

    if given.dry_run:
        from kvlite.batch.dry_run import dry_run

        dry_run(job, choose, call.console)
    else:
        from kvlite.batch.batch import Batch

        Batch(job, choose, call.console, call.start_recorder("batch", output.report)).run()


def _job(given: BatchOptions, answer: AnswerOptions, options: ModelOptions, call: Invocation) -> BatchJob:
    """The batch that was asked for. Raises UsageError on what cannot be."""
    from kvlite.batch.batch_run import ItemLimits
    from kvlite.batch.item import Form
    from kvlite.batch.job import BatchJob
    from kvlite.batch.prepare import Defaults
    from kvlite.batch.source import Input, Layout, Reader, Selection, Shard
    from kvlite.llm.answer import BATCH_MAX_TOKENS, sampling_of

    drawn = sampling_of(answer)
    drawn.pop("seed", None)
    layout = Layout.of(given.input) if given.format == "auto" else Layout(given.format)
    reader = Reader(layout, given.escape, given.prompt_column)
    return BatchJob(
        input=Input(given.input, reader, Selection(Shard.parse(given.shard or "1/1"), given.skip, given.limit)),
        output=given.output,
        form=Form(given.out_format) if given.out_format else None,
        ordered=given.ordered,
        resume=given.resume,
        force_resume=given.force_resume,
        overwrite=given.overwrite,
        retry_errors=given.retry_errors,
        max_time_s=_positive("--max-time", given.max_time),
        max_errors=1 if given.fail_fast else given.max_errors,
        summary=given.summary,
        progress=given.progress,
        limits=ItemLimits(_positive("--timeout", given.timeout), given.retries, given.dedupe),
        defaults=Defaults(
            sampling=drawn,
            seed=answer.seed,
            max_tokens=answer.max_tokens or BATCH_MAX_TOKENS,
            stop=answer.stop,
            system=answer.system,
            pin_system=options.pin_system,
        ),
        argv=tuple(sys.argv),
        budget_source=call.sources["kv_budget"],
    )


def _batch_size(written: str) -> BatchSize:
    if written == "auto":
        return "auto"
    if not written.isascii() or not written.isdigit() or not 1 <= int(written[:9]) <= 65536:
        raise UsageError(f"--batch-size is {written!r}; give auto or a number from 1 to 65536")
    return int(written)


def _positive(flag: str, seconds: float | None) -> float | None:
    if seconds is not None and not 0 < seconds < float("inf"):  # NaN too
        raise UsageError(f"{flag} is {seconds}; give seconds above 0")
    return seconds
