"""Run a batch job from its input to its exit code: survey the input, lock the output, open the model, write records."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING

from kvlite.batch.batch_run import BatchRun
from kvlite.batch.item import Entry, Form, Item, Outcome
from kvlite.batch.job import BatchJob
from kvlite.batch.model import ChooseModel
from kvlite.batch.output import Output, StdoutLines
from kvlite.batch.output_journal import Meta, is_journal, open_destination, resume
from kvlite.batch.prepare import Preparer
from kvlite.batch.records import record_line
from kvlite.batch.source import STDIN
from kvlite.batch.tally import Tally
from kvlite.console import Console
from kvlite.deadline import Deadline
from kvlite.engine.request import Token
from kvlite.errors import BatchFailed, Interrupted, KvliteError, OutputError, Terminated, TimeLimit
from kvlite.record.measure import installed_versions
from kvlite.record.recorder import Recorder
from kvlite.record.schema import BatchReport

if TYPE_CHECKING:
    from kvlite.llm import LLM

UPDATE_EVERY_S = 0.1  # of the progress line, which asks every row what it holds
NUM_AHEAD = 64  # entries of a pipe that wait to be answered, at most
_NOT_IN_A_RESUME = ("--overwrite", "--no-resume")


class Batch:
    """One batch job; `run` runs it to its end."""

    def __init__(self, job: BatchJob, choose_model: ChooseModel, console: Console, recorder: Recorder) -> None:
        self._job = job
        self._choose_model = choose_model
        self._console = console
        self._recorder = recorder
        self._tally = Tally()
        self._output: Output | None = None
        self._set_aside: dict[bytes, str] = {}
        self._deadline = Deadline(job.max_time_s)
        self._running_s = time.monotonic()

    def run(self) -> None:
        """Answer everything. Raises the KvliteError that ends the batch, BatchFailed where records are failures."""
        with self._recorder, ExitStack() as ending:
            try:
                with self._deadline.running():
                    self._run(ending)
            except (KeyboardInterrupt, Terminated, TimeLimit) as stop:
                raise self._stopped(stop) from None
            if failed := self._tally.failed + self._tally.kept_failures:
                hint = "; --retry-errors runs them again" if is_journal(self._job, self._output) else ""
                raise BatchFailed(f"{failed} of {self._num_records} records are failures and say why{hint}")

    def _run(self, ending: ExitStack) -> None:
        """Write all records; callbacks given to `ending` run however this ends, outside the time limit."""
        survey = self._job.input.survey()
        self._tally.total = survey.total
        model = self._choose_model(survey.model)
        if model.note:
            self._console.note(model.note)
        identity = model.identity()  # resolves the model first: a misspelt name writes nothing
        version = installed_versions().get("kvlite", "unknown")
        meta = Meta(survey.sha256, identity, {**model.params, **self._job.params()}, version)
        self._output = open_destination(self._job, self._console)
        ending.callback(self._output.close)
        done = resume(self._job, meta, self._output, self._console)
        self._set_aside = done.set_aside
        ending.callback(self._put_back)
        self._tally.resumed, self._tally.kept_failures = done.ok + done.failed, done.failed
        selected = self._job.input.selection.of(survey.entries, done.marks)
        first = next(selected, None)
        if first is None:
            there = f"all {self._num_records} records are there" if self._num_records else "there are no lines"
            self._console.note(f"nothing to do: {there}")
            ending.callback(self._summarise)
            return
        llm = model.open()
        llm.record(self._recorder, self._job.budget_source)
        sampling = {**asdict(llm.model.sampling), **self._job.defaults.sampling}
        preparer = Preparer(llm.model.text, replace(self._job.defaults, sampling=sampling), model.required)
        batch = BatchRun(llm.engine, preparer, self._job.limits)
        ending.callback(self._finish, batch, llm)
        self._running_s = time.monotonic()
        rest = ReadAhead(selected) if self._job.input.is_pipe else selected
        noticed = self._noticed(chain([first], rest), model.required is None)
        is_limited = self._job.limits.timeout_s is not None
        with self._deadline.watching(batch.cancel_late) if is_limited else nullcontext():
            self._write(batch, noticed, llm, self._output)

    def _finish(self, batch: BatchRun, llm: LLM) -> None:
        counts = self._summarise(batch.peak_bytes, llm.engine.plan.budget_bytes)
        report = BatchReport.model_validate({name: counts[name] for name in BatchReport.model_fields})
        self._recorder.batch(report, batch.peak_bytes)

    def _write(self, batch: BatchRun, entries: Iterable[Entry | None], llm: LLM, output: Output) -> None:
        form, budget_bytes = self._job.form, llm.engine.plan.budget_bytes
        is_ordered = self._job.ordered or form is Form.TEXT
        next_update_s = 0.0
        with self._console.progress(self._job.progress) as progress:
            for event in batch.run_in_order(entries) if is_ordered else batch.run(entries):
                now = time.monotonic()
                if isinstance(event, Token):
                    self._tally.generated += 1
                else:
                    # Before the record is written: a line that loses its record just runs again.
                    self._set_aside.pop(event.entry.mark, None)
                    output.write(record_line(event, form or event.entry.form, llm.model.name))
                    self._count(event)
                if now >= next_update_s:
                    next_update_s = now + UPDATE_EVERY_S
                    progress.update(self._tally.progress(self._seconds, batch.live_bytes(), budget_bytes))

    def _count(self, outcome: Outcome) -> None:
        self._tally.add(outcome)
        answers = outcome.choices if outcome.deduped_from is None else ()
        for choice in answers:
            ending = {} if outcome.failure is None else {"finish_reason": "error"}
            report = choice.report().model_copy(update={"id": outcome.entry.key, **ending})
            self._recorder.answered(report, choice.kv)
        if answers:
            self._recorder.sample()
        if outcome.failure is not None and self._job.form is Form.TEXT:  # the text form has no place for it
            self._console.warn(f"line {outcome.entry.place.line}: {outcome.failure.message}")
        most = self._job.max_errors
        if most is not None and self._tally.failed >= most:
            beyond = ", or a higher --max-errors past those that always fail" if self._set_aside else ""
            raise BatchFailed(
                f"stopped at {self._tally.failed} failed of {self._num_records} records{self._way_on()}{beyond}"
            )

    def _noticed(self, entries: Iterable[Entry | None], ignores_models: bool) -> Iterator[Entry | None]:
        """Pass the entries through; settings in them that have no effect are reported once."""
        ignored: set[str] = set()
        for entry in entries:
            if isinstance(entry, Item):
                if new := [name for name in entry.ignored if name not in ignored]:
                    ignored.update(new)
                    self._console.warn(f"line {entry.place.line} has keys that are ignored: {', '.join(new)}")
                if ignores_models and entry.model is not None:
                    ignores_models = False
                    self._console.note("the models that lines name are ignored: -m names one for all")
            yield entry

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._running_s

    @property
    def _num_records(self) -> int:
        return self._tally.resumed + self._tally.ok + self._tally.failed + len(self._set_aside)

    def _put_back(self) -> None:
        """Append the failed records whose lines did not run again to the file."""
        while self._set_aside and self._output is not None:
            self._output.write(self._set_aside.pop(next(iter(self._set_aside))))
            self._tally.resumed += 1
            self._tally.kept_failures += 1

    def _summarise(self, peak_bytes: int = 0, budget_bytes: int = 0) -> dict[str, object]:
        """Say and write the counts of the whole batch, and return them."""
        self._put_back()
        seconds = self._seconds
        self._console.note(self._tally.closing(seconds, peak_bytes, budget_bytes))
        kv = {"peak_bytes": peak_bytes, "budget_bytes": budget_bytes, "tokens_evicted": self._tally.tokens_evicted}
        counts = {**self._tally.as_dict(seconds), "kv": kv}
        if self._console.as_json and not isinstance(self._output, StdoutLines):
            self._console.json(counts)
        if (path := self._job.summary) is not None:
            try:
                Path(path).write_text(f"{json.dumps(counts)}\n", encoding="utf-8")
            except OSError as error:
                raise OutputError(f"cannot write {path}: {error.strerror}") from error
        return counts

    def _stopped(self, stop: BaseException) -> KvliteError:
        """Make the error that ends a batch from outside, with the command that continues it."""
        of = f" of {self._tally.total}" if self._tally.total is not None else ""
        where = f"after {self._num_records}{of} records{self._way_on()}"
        if isinstance(stop, TimeLimit):
            return TimeLimit(f"--max-time of {self._job.max_time_s:g} s is over {where}")
        if isinstance(stop, Terminated):
            return Terminated(f"terminated {where}")
        return Interrupted(f"interrupted {where}")

    def _way_on(self) -> str:
        if self._output is None:
            return ""
        if not is_journal(self._job, self._output):
            return "; without an output file of records it cannot be resumed"
        words = [word for word in self._job.argv[1:] if word not in _NOT_IN_A_RESUME]
        again = " with the same input" if self._job.input.name == STDIN else ""
        return f"; to continue, run{again}: kvlite {shlex.join(words)}"


class ReadAhead(Iterator[Entry | None]):
    """Entries read in a thread, so that a slow pipe delays no answer; None where the next one is not there yet.

    Raises the errors of `source`. The thread never keeps the process alive, also while it waits for a line.
    """

    def __init__(self, source: Iterator[Entry]) -> None:
        self._source = source
        self._read: Queue[Entry | BaseException] = Queue(NUM_AHEAD)
        Thread(target=self._run, name="read-ahead", daemon=True).start()

    def __next__(self) -> Entry | None:
        try:
            entry = self._read.get_nowait()
        except Empty:
            return None
        if isinstance(entry, BaseException):
            self._read.put(entry)  # so that every later call raises it, too
            raise entry
        return entry

    def _run(self) -> None:
        try:
            for entry in self._source:
                self._read.put(entry)
            end: BaseException = StopIteration()
        except BaseException as error:  # raised again where the entries are awaited
            end = error
        self._read.put(end)
