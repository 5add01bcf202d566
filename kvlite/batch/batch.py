"""Run a batch job from its input to its exit code: survey the input, lock the output, open the model, write records."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from kvlite.batch.batch_run import BatchRun
from kvlite.batch.item import Item, Outcome
from kvlite.batch.model import ChooseModel
from kvlite.batch.output import Output, StdoutLines
from kvlite.batch.output_journal import is_journal, open_destination, resume
from kvlite.batch.paths import STDIN, refuse_shared_files
from kvlite.batch.prepare import Preparer
from kvlite.batch.read_ahead import read_ahead
from kvlite.batch.records import record_line
from kvlite.batch.runner import Generated, Runner, next_look, run_in_order
from kvlite.batch.source import Input
from kvlite.batch.tally import Tally
from kvlite.batch.workers.opening import open_workers
from kvlite.console import Console
from kvlite.deadline import Deadline
from kvlite.engine.request import Token
from kvlite.errors import BatchFailed, Interrupted, KvliteError, OutputError, Terminated, TimeLimit, UsageError
from kvlite.llm.answer import BATCH_MAX_TOKENS, check_answer, grammar_of, sampling_of
from kvlite.options import AnswerOptions, BatchOptions
from kvlite.record.measure import versions
from kvlite.record.recorder import BatchProgress, Recorder
from kvlite.record.schema import BatchReport

if TYPE_CHECKING:
    from kvlite.batch.model import Model

UPDATE_EVERY_S = 0.1  # of the progress line, which asks every row what it holds
_NOT_IN_A_RESUME = ("--overwrite", "--no-resume")


class Batch:
    """One batch job; `run` runs it to its end."""

    def __init__(
        self,
        options: BatchOptions,
        answer: AnswerOptions,
        choose_model: ChooseModel,
        console: Console,
        recorder: Recorder,
    ) -> None:
        check_answer(answer)
        if answer.logprobs is not None and options.out_format == "text":
            raise UsageError("--logprobs have no place in --out-format text; give another form")
        refuse_shared_files(options, recorder.report, is_terminal=console.is_terminal)
        self._options = options
        self._answer = answer
        self._input = Input(options)
        self._params = {
            **sampling_of(answer),
            "seed": answer.seed,
            "max_tokens": answer.max_tokens or BATCH_MAX_TOKENS,
            "min_tokens": answer.min_tokens,
            "logprobs": answer.logprobs,
            "stop": answer.stop,
            "system": answer.system,
            "grammar": None if (grammar := grammar_of(answer)) is None else str(grammar),
            "format": self._input.layout,
            "escape": options.escape,
            "prompt_column": options.prompt_column,
            "out_format": options.out_format or "mirrored",
            "ordered": True if options.ordered else None,  # as in a sidecar of a time that did not note it
        }
        self._choose_model = choose_model
        self._console = console
        self._recorder = recorder
        self._tally = Tally()
        self._output: Output | None = None
        self._set_aside: dict[bytes, str] = {}
        self._deadline = Deadline(options.max_time)
        self._running_s = time.monotonic()

    def run(self) -> None:
        """Answer everything. Raises the KvliteError that ends the batch, BatchFailed where records are failures."""
        with self._recorder, ExitStack() as ending:
            try:
                with self._deadline.running():
                    self._run(ending)
            except (KeyboardInterrupt, Terminated, TimeLimit) as stop:
                raise self._stopped(stop) from None
            if failed := self._tally.failed + self._tally.resumed_failed + len(self._set_aside):
                hint = "; --retry-errors runs them again" if is_journal(self._options, self._output) else ""
                raise BatchFailed(f"{failed} of {self._num_records} records are failures and say why{hint}")

    def _run(self, ending: ExitStack) -> None:
        """Write all records; callbacks given to `ending` run however this ends, outside the time limit."""
        survey = self._input.survey()
        if columns := self._input.setting_columns:
            self._console.note(f"columns that are settings of their rows: {', '.join(columns)}")
        self._tally.total = survey.total
        model = self._choose_model(survey.model)
        meta = {
            "input_sha256": survey.sha256,
            "model": model.identity(),  # resolves the model first: a misspelt name writes nothing
            "params": {**model.params, **self._params},
            "version": versions().get("kvlite", "unknown"),
        }
        self._output = open_destination(self._options, self._console)
        ending.callback(self._output.close)
        done = resume(self._options, meta, self._output, self._console)
        self._set_aside = done.set_aside
        ending.callback(self._put_back)
        self._tally.resumed, self._tally.resumed_failed = done.ok + done.failed, done.failed
        selected = self._input.select(survey.items, done.marks)
        first = next(selected, None)
        if first is None:
            there = f"all {self._num_records} records are there" if self._num_records else "there are no lines"
            self._console.note(f"nothing to do: {there}")
            ending.callback(self._summarise)
            return
        if self._options.ordered and self._input.num_passed < self._tally.resumed:
            self._console.warn(
                "--ordered: records of lines that run now follow those that are there, also of later lines"
            )
        runner = self._open(model, ending)
        self._running_s = time.monotonic()
        items = chain([first], read_ahead(selected) if self._input.is_pipe else selected)
        with self._deadline.watching(runner.cancel_late):
            self._write(runner, self._noticed(items, model.required is None), self._output)

    def _open(self, model: Model, ending: ExitStack) -> Runner:
        """Open the model, in this process or in workers; `ending` closes them and says what came of it."""
        runner: Runner
        if self._options.devices is not None or self._options.ray is not None:
            lines = None if self._tally.total is None else max(1, self._tally.total - self._input.num_done)
            workers = open_workers(model, self._answer, self._options, self._recorder, lines)
            ending.callback(workers.close)
            workers.await_model()
            runner = workers
        else:
            rows = model.open(self._recorder)
            text, window = rows.model.text, rows.model.loaded.window
            runner = BatchRun(rows, Preparer.of(model, text, window, self._answer, self._options), self._options)
        ending.callback(lambda: self._summarise(runner.peak_bytes, runner.budget_bytes))
        return runner

    def _write(self, runner: Runner, items: Iterable[Item | None], output: Output) -> None:
        form = self._options.out_format
        is_ordered = self._options.ordered or form == "text"
        next_update_s = 0.0
        with self._console.progress(self._options.progress) as progress:
            for event in run_in_order(runner, items) if is_ordered else runner.run(items):
                if isinstance(event, Token):
                    self._tally.generated += 1
                elif isinstance(event, Generated):
                    self._tally.generated += event.n
                else:
                    # Before the record is written: a line that loses its record just runs again.
                    self._set_aside.pop(event.item.mark, None)
                    output.write(record_line(event, form or event.item.form, runner.name))
                    self._count(event)
                if time.monotonic() >= next_update_s:
                    looked_s = time.monotonic()
                    self._look(runner, progress)
                    next_update_s = next_look(looked_s, UPDATE_EVERY_S)
            self._look(runner, progress)

    def _look(self, runner: Runner, progress: Callable[[str], None]) -> None:
        """Show how far the batch is, and note it in the run record."""
        rows = f"{runner.rows_used}/{runner.num_rows}"
        kv_bytes = runner.live_bytes(), runner.budget_bytes
        progress(self._tally.progress(self._seconds, self._input.num_done, rows, *kv_bytes))
        self._recorder.sample(BatchProgress(self._tally.generated, runner.rows_used, runner.num_rows))

    def _count(self, outcome: Outcome) -> None:
        self._tally.add(outcome)
        answers = outcome.choices if outcome.deduped_from is None else ()
        for choice in answers:
            ending = {} if outcome.failure is None else {"finish_reason": "error"}
            report = choice.report().model_copy(update={"id": outcome.item.key, **ending})
            self._recorder.answered(report, choice.kv)
        if outcome.failure is not None and self._options.out_format == "text":  # the text form has no place for it
            self._console.warn(f"line {outcome.item.line}: {outcome.failure.message}")
        most = 1 if self._options.fail_fast else self._options.max_errors
        if most is not None and self._tally.failed >= most:
            is_bounded = self._set_aside and not self._options.fail_fast
            beyond = ", or a higher --max-errors past those that always fail" if is_bounded else ""
            raise BatchFailed(
                f"stopped at {self._tally.failed} failed of {self._num_records} records{self._way_on()}{beyond}"
            )

    def _noticed(self, items: Iterable[Item | None], ignores_models: bool) -> Iterator[Item | None]:
        """Pass the items through; settings in them that have no effect are reported once."""
        ignored: set[str] = set()
        for item in items:
            if item is not None and item.failure is None:
                unsupported = item.unsupported if self._options.ignore_unsupported else ()
                if new := [name for name in (*item.ignored, *unsupported) if name not in ignored]:
                    ignored.update(new)
                    self._console.warn(f"line {item.line} has keys that are ignored: {', '.join(new)}")
                if ignores_models and item.model is not None:
                    ignores_models = False
                    self._console.note("the models that lines name are ignored: -m names one for all")
            yield item

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._running_s

    @property
    def _num_records(self) -> int:
        return self._tally.done + len(self._set_aside)

    def _put_back(self) -> None:
        """Append the failed records whose lines did not run again to the file."""
        while self._set_aside and self._output is not None:
            self._output.write(self._set_aside.pop(next(iter(self._set_aside))))
            self._tally.resumed += 1
            self._tally.resumed_failed += 1

    def _summarise(self, peak_bytes: int = 0, budget_bytes: int = 0) -> None:
        """Say, record and write the counts of the whole batch."""
        self._put_back()
        seconds = self._seconds
        self._console.note(self._tally.closing(seconds, peak_bytes, budget_bytes))
        kv = {"peak_bytes": peak_bytes, "budget_bytes": budget_bytes, "tokens_evicted": self._tally.tokens_evicted}
        counts = {**self._tally.as_dict(seconds), "kv": kv}
        report = {name: counts[name] for name in BatchReport.model_fields if name in counts}
        self._recorder.batch(BatchReport.model_validate(report), peak_bytes)
        if self._console.as_json and not isinstance(self._output, StdoutLines):
            self._console.json(counts)
        if (path := self._options.summary) is not None:
            try:
                Path(path).write_text(f"{json.dumps(counts)}\n", encoding="utf-8")
            except OSError as error:
                raise OutputError(f"cannot write {path}: {error.strerror}") from error

    def _stopped(self, stop: BaseException) -> KvliteError:
        """Make the error that ends a batch from outside, with the command that continues it."""
        total = self._tally.total
        of = "" if total is None or total < self._num_records else f" of {total}"  # the file may hold those of others
        old = f", {len(self._set_aside)} of them failures that did not run again" if self._set_aside else ""
        where = f"after {self._num_records}{of} records{old}{self._way_on()}"
        if isinstance(stop, TimeLimit):
            return TimeLimit(f"--max-time of {self._options.max_time:g} s is over {where}")
        return (
            Terminated(f"terminated {where}") if isinstance(stop, Terminated) else Interrupted(f"interrupted {where}")
        )

    def _way_on(self) -> str:
        if self._output is None:
            return ""
        if not is_journal(self._options, self._output):
            return "; without an output file of records it cannot be resumed"
        words = [word for word in sys.argv[1:] if word not in _NOT_IN_A_RESUME]
        again = " with the same input" if self._input.name == STDIN else ""
        return f"; to continue, run{again}: kvlite {shlex.join(words)}"
