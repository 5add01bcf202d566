"""`kvlite batch`: many prompts from a file or a pipe, one record each."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from kvlite.cli import options as opt
from kvlite.errors import UsageError

_INPUT, _OUTPUT, _RUN = "Input", "Output", "Run"

Input = Annotated[str, typer.Argument(metavar="INPUT", help="JSON lines, plain lines or CSV; - is stdin.")]
Output = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="PATH|-", allow_from_autoenv=False, rich_help_panel=_OUTPUT,
                 show_default="stdout if redirected, else <input>.out.jsonl", help="Where the records go."),
]  # fmt: skip
Format = Annotated[
    Literal["auto", "openai", "simple", "text", "csv"],
    typer.Option("--format", rich_help_panel=_INPUT,
                 help="auto goes by the name (.csv, .txt), else JSON lines, their form told line by line."),
]  # fmt: skip
Escape = Annotated[
    bool, typer.Option("--escape", rich_help_panel=_INPUT, help="In plain lines, \\n stands for a newline.")
]
PromptColumn = Annotated[
    str, typer.Option("--prompt-column", metavar="NAME", rich_help_panel=_INPUT, help="The CSV column to answer.")
]
Skip = Annotated[
    int,
    typer.Option("--skip", metavar="N", min=0, allow_from_autoenv=False, rich_help_panel=_INPUT,
                 help="Leave out the first N records."),
]  # fmt: skip
Limit = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=0, allow_from_autoenv=False, rich_help_panel=_INPUT,
                 help="Take at most N records."),
]  # fmt: skip
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", allow_from_autoenv=False, rich_help_panel=_INPUT,
                 help="Take the I-th of N shares of the ids, from 1/N; before --skip and --limit."),
]  # fmt: skip
OutFormat = Annotated[
    Literal["openai", "simple", "text"] | None,
    typer.Option("--out-format", rich_help_panel=_OUTPUT, show_default="as each line came",
                 help="text is one answer per line, newlines as \\n, in input order; it cannot be resumed."),
]  # fmt: skip
Resume = Annotated[
    bool,
    typer.Option("--resume/--no-resume", rich_help_panel=_OUTPUT,
                 help="Go on in an output file that exists, or refuse to."),
]  # fmt: skip
ForceResume = Annotated[
    bool,
    typer.Option("--force-resume", allow_from_autoenv=False, rich_help_panel=_OUTPUT,
                 help="Go on although settings or input have changed."),
]  # fmt: skip
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", allow_from_autoenv=False, rich_help_panel=_OUTPUT,
                 help="Start an output file that exists over."),
]  # fmt: skip
RetryErrors = Annotated[
    bool,
    typer.Option("--retry-errors", allow_from_autoenv=False, rich_help_panel=_OUTPUT,
                 help="Run the failed records of an output file again."),
]  # fmt: skip
Ordered = Annotated[
    bool, typer.Option("--ordered", rich_help_panel=_OUTPUT, help="Write records in the order of the input.")
]
BatchSize = Annotated[
    str,
    typer.Option("--batch-size", metavar="auto|N", rich_help_panel=_RUN, help="At most this many answers at once."),
]
Dedupe = Annotated[
    bool,
    typer.Option("--dedupe", rich_help_panel=_RUN, help="Run equal greedy requests once; keeps answers in memory."),
]
Retries = Annotated[
    int,
    typer.Option("--retries", metavar="N", min=0, rich_help_panel=_RUN,
                 help="After out-of-memory, try a record alone this often."),
]  # fmt: skip
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", rich_help_panel=_RUN, help="Fail a record that takes longer."),
]
MaxTime = Annotated[
    float | None,
    typer.Option("--max-time", metavar="SECONDS", rich_help_panel=_RUN, help="Stop after this long (exit 124)."),
]
MaxErrors = Annotated[
    int | None,
    typer.Option("--max-errors", metavar="N", min=1, rich_help_panel=_RUN, help="Stop at N failed records (exit 5)."),
]
FailFast = Annotated[bool, typer.Option("--fail-fast", rich_help_panel=_RUN, help="Stop at the first failed record.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", allow_from_autoenv=False, rich_help_panel=_RUN,
                 help="Check the input, count its tokens and plan the memory; load no weights."),
]  # fmt: skip
Progress = Annotated[
    Literal["auto", "bar", "lines", "none"],
    typer.Option("--progress", rich_help_panel=_RUN, help="How stderr tells how far it is."),
]
Summary = Annotated[
    str | None,
    typer.Option("--summary", metavar="PATH", allow_from_autoenv=False, rich_help_panel=_RUN,
                 help="Write the counts at the end as JSON."),
]  # fmt: skip


def batch(
    input: Input,
    model: opt.ModelOption = None,
    output: Output = None,
    format: Format = "auto",
    escape: Escape = False,
    prompt_column: PromptColumn = "prompt",
    skip: Skip = 0,
    limit: Limit = None,
    shard: ShardOption = None,
    out_format: OutFormat = None,
    resume: Resume = True,
    force_resume: ForceResume = False,
    overwrite: Overwrite = False,
    retry_errors: RetryErrors = False,
    ordered: Ordered = False,
    batch_size: BatchSize = "auto",
    dedupe: Dedupe = False,
    retries: Retries = 1,
    timeout: Timeout = None,
    max_time: MaxTime = None,
    max_errors: MaxErrors = None,
    fail_fast: FailFast = False,
    dry_run: DryRun = False,
    progress: Progress = "auto",
    summary: Summary = None,
    system: opt.System = None,
    max_tokens: opt.MaxTokens = None,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    min_p: opt.MinP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    greedy: opt.Greedy = False,
    think: opt.Think = None,
    report: opt.Report = None,
    kv_budget: opt.KvBudget = None,
    kv_per_seq: opt.KvPerSeq = None,
    kv_policy: opt.KvPolicy = None,
    kv_dtype: opt.KvDtype = None,
    on_full: opt.OnFull = None,
    pin_system: opt.PinSystem = True,
    prefill_chunk: opt.PrefillChunk = None,
    quant: opt.Quant = None,
    four_bit: opt.FourBit = False,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
    trust_remote_code: opt.TrustRemoteCode = False,
    allow_pickle: opt.AllowPickle = False,
    fuse: opt.Fuse = True,
    kernels: opt.Kernels = "auto",
    capture: opt.Capture = None,
    offline: opt.Offline = False,
) -> None:
    """Answer every line of INPUT; killed at any moment, the same command goes on where it stopped.

    What a line says for itself (temperature, max_tokens, stop, ...) wins over the flags here; an answer that nobody
    limits ends after 1,024 tokens. Without -m the lines name the model. Exit code 5 means that some lines failed: their
    records say why.
    """
    from functools import partial

    from kvlite.batch.item import Form
    from kvlite.batch.job import Ending, Job, Writing
    from kvlite.batch.prepare import DEFAULT_MAX_TOKENS, Defaults
    from kvlite.batch.run import Limits
    from kvlite.batch.source import Input, Layout, Reader, Selection, Shard
    from kvlite.cli.answering import source_of
    from kvlite.cli.batch_model import choose_model

    sampling = opt.sampling(
        greedy=greedy,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    sampling.pop("seed", None)
    layout = Layout.of(input) if format == "auto" else Layout(format)
    job = Job(
        input=Input(input, Reader(layout, escape, prompt_column), Selection(Shard.parse(shard or "1/1"), skip, limit)),
        writing=Writing(
            output=output,
            form=Form(out_format) if out_format else None,
            resume=resume,
            force_resume=force_resume,
            overwrite=overwrite,
            retry_errors=retry_errors,
            ordered=ordered,
        ),
        ending=Ending(
            max_time_s=_positive("--max-time", max_time),
            max_errors=1 if fail_fast else max_errors,
            summary=summary,
            progress=progress,
            report=report or "auto",
        ),
        limits=Limits(_positive("--timeout", timeout), retries, dedupe),
        defaults=Defaults(
            sampling=sampling,
            seed=seed,
            max_tokens=max_tokens or DEFAULT_MAX_TOKENS,
            stop=tuple(stop or ()),
            system=system,
            pin_system=pin_system,
        ),
        argv=tuple(sys.argv),
        budget_source=source_of("kv_budget"),
    )
    flags = {
        "kv_budget": kv_budget,
        "kv_per_seq": kv_per_seq,
        "kv_policy": kv_policy,
        "kv_dtype": kv_dtype,
        "on_full": on_full,
        "pin_system": pin_system,
        "prefill_chunk": prefill_chunk,
        "quant": quant,
        "four_bit": four_bit,
        "dtype": dtype,
        "device": device,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
        "fuse": fuse,
        "kernels": kernels,
        "capture": capture,
        "offline": offline,
        "think": think,
    }
    choose = partial(choose_model, model, flags, _batch_size(batch_size))
    if dry_run:
        from kvlite.batch.dry_run import dry_run as check

        check(job, choose, opt.console())
    else:
        from kvlite.batch.batch import Batch

        Batch(job, choose, opt.console()).run()


def _batch_size(written: str) -> int | None:
    if written == "auto":
        return None
    if not written.isascii() or not written.isdigit() or not 1 <= int(written[:9]) <= 65536:
        raise UsageError(f"--batch-size is {written!r}; give auto or a number from 1 to 65536")
    return int(written)


def _positive(flag: str, seconds: float | None) -> float | None:
    if seconds is not None and not 0 < seconds < float("inf"):  # NaN too
        raise UsageError(f"{flag} is {seconds}; give seconds above 0")
    return seconds
