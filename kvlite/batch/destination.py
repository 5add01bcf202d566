"""Open the output of a batch job, and find the records that are in it already."""

from __future__ import annotations

from pathlib import Path

from kvlite.batch.item import Form
from kvlite.batch.job import BatchJob, Model
from kvlite.batch.output import LockedFile, Output, StdoutLines, open_output
from kvlite.batch.output_journal import Done, Meta, OutputJournal
from kvlite.batch.source import STDIN, Survey
from kvlite.console import Console
from kvlite.errors import UsageError
from kvlite.record.measure import installed_versions


def open_destination(job: BatchJob, console: Console) -> Output:
    """Open the output of a job: stdout where it is redirected or asked for, else a file, locked.

    Raises UsageError and OutputError.
    """
    writing, source = job.writing, job.input.name
    name = writing.output
    if name is None and console.is_terminal and source != STDIN:
        name = f"{Path(source).stem}.out.{'txt' if writing.form is Form.TEXT else 'jsonl'}"
        console.note(f"the records go to {name}")
    if name is None or name == STDIN:
        output: Output = StdoutLines(console.line)
    else:
        path = Path(name)
        if source != STDIN and path.exists() and Path(source).exists() and path.samefile(source):
            raise UsageError(f"{name} is the input; give -o another file")
        output = open_output(path)
    if writing.retry_errors and not is_journal(job, output):
        raise UsageError("--retry-errors needs the output file whose failed records are to run again; give -o")
    return output


def meta_of(job: BatchJob, model: Model, survey: Survey | None) -> Meta:
    """Collect what the records of this job are made with. Raises ModelError where the model cannot be had."""
    version = installed_versions().get("kvlite", "unknown")
    return Meta(survey.sha256 if survey else None, model.identity(), job.params(model), version)


def is_journal(job: BatchJob, output: Output | None) -> bool:
    """True where the output tells which lines have their record."""
    return isinstance(output, LockedFile) and job.writing.form is not Form.TEXT


def resume(job: BatchJob, meta: Meta, output: Output, console: Console) -> Done:
    """Find the lines that have their record already. Raises UsageError where the output cannot be continued."""
    if not isinstance(output, LockedFile):
        return Done()
    writing, journal = job.writing, OutputJournal(output)
    if not is_journal(job, output):
        if output.size and not writing.overwrite:
            raise UsageError(
                f"{output.path} is not empty, and text output cannot be resumed; give --overwrite or another -o"
            )
        journal.start_over()
        return Done()
    if output.size and not (writing.resume or writing.overwrite):
        raise UsageError(f"{output.path} has records; give --resume, --overwrite or another -o")
    if writing.overwrite:
        journal.start_over()
    elif not writing.force_resume:
        journal.check(meta)
    done = journal.done()
    if torn := journal.drop_torn_line():
        console.warn(f"{output.path} ended in {torn} bytes of a torn line, now in {output.path.name}.torn")
    journal.keep(meta)
    if not writing.retry_errors or not done.failed:
        return done
    kept = journal.set_failed_aside()
    console.note(f"up to {len(kept.set_aside)} failed records run again")
    return kept
