"""The work of `kvlite eval`: the model, the suites and variants, progress, the outputs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvlite.errors import OutputError, UsageError

if TYPE_CHECKING:
    from kvlite.cli.eval import EvalOptions
    from kvlite.console import Console
    from kvlite.evaluation.evaluation import Evaluation
    from kvlite.evaluation.report import Report
    from kvlite.evaluation.suites import Suite
    from kvlite.evaluation.tasks import Subject
    from kvlite.evaluation.variant import Variant
    from kvlite.memory.budget import Budget
    from kvlite.models.loaded import LoadedModel
    from kvlite.options import ModelOptions
    from kvlite.record.recorder import Recorder

LENGTH = 900
"""Tokens of a conversation where the user names no number and the model's window holds as many."""

_WINDOW_SHARE = 0.9  # the rest is for answers longer than the right ones


@dataclass(frozen=True, slots=True)
class Comparison:
    """Suites under policies and budgets, as the options list them; `chunk` is the most prompt tokens fed at once."""

    given: EvalOptions
    chunk: int | None

    def suites(self, length: int) -> list[Suite]:
        """The suites of conversations of `length` tokens. Raises UsageError on unknown names, and on a useless text."""
        from kvlite.evaluation.suites import Suite

        given = self.given
        names = _listed(given.suite) or (("kl", "ppl") if given.text is not None else ("recall", "kl"))
        suites = [
            Suite(name, given.conversations, length, given.seed, given.split, given.answer_tokens) for name in names
        ]
        if given.text is not None and not any(suite.is_forced for suite in suites):
            raise UsageError(f"--text {given.text} is for the suites kl and ppl; give --suite kl,ppl or leave it out")
        return suites

    def variants(self) -> list[Variant]:
        """Policies by slot formats by budgets. Raises UsageError on a word that is none of these."""
        from kvlite.cache.policy import load_policy
        from kvlite.cache.policy_text import split_policies
        from kvlite.evaluation.variant import Variant
        from kvlite.memory.format import slot_format
        from kvlite.memory.plan import MOST_CHUNK

        policies = [load_policy(name) for name in _listed(self.given.policy, split_policies)]
        formats = _listed(self.given.kv_dtype)
        for name in formats:
            slot_format(name, "float32")
        return [
            Variant(policy, budget, kv_dtype, self.chunk or MOST_CHUNK)
            for budget in self._budgets()
            for policy in policies
            for kv_dtype in formats
            if policy.evicts  # the full cache is the reference, whatever the budget
        ]

    def _budgets(self) -> list[Budget]:
        from kvlite.memory.budget import Budget, BudgetKind

        sizes = [Budget.parse(size) for size in _listed(self.given.kv_budget)]
        shares = [_share(share) for share in _listed(self.given.share) or (() if sizes else ("10", "25"))]
        for size in sizes:
            if size.kind not in (BudgetKind.BYTES, BudgetKind.TOKENS):
                raise UsageError(f"--kv-budget {size} is no size; give bytes or tokens, or --share for percent")
        return [*shares, *sizes]

    def check(self) -> None:
        """Raise UsageError on mistakes that show before any model is looked for."""
        self.variants()
        self.suites(self.given.length or LENGTH)
        self._check_files()

    def _check_files(self) -> None:
        """Refuse files that could not be written afterwards, or that would be written over what is read."""
        given = self.given
        for flag, path in (("--journal", given.journal), ("--html", given.html)):
            if path is None:
                continue
            obstacle = _obstacle(path)
            if obstacle is not None:
                raise UsageError(f"{flag} {path}: {obstacle}; give another file")
            others = {"--text": given.text, "--journal": given.journal if flag == "--html" else None}
            for other, file in others.items():
                if file is not None and file.resolve() == path.resolve():
                    raise UsageError(f"{flag} and {other} name the same file {path}; give another")


def _obstacle(path: Path) -> str | None:
    """The reason why a file cannot be written, None where it can."""
    if path.is_dir():
        return "a folder"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return "it may not be written"
    return None


def _share(text: str) -> Budget:
    from kvlite.memory.budget import Budget

    try:
        return Budget.parse(f"{text.removesuffix('%')}%")
    except UsageError as error:
        raise UsageError(f"--share {text} is no percentage; give a number above 0 and at most 100") from error


def evaluate(asked: Comparison, options: ModelOptions, recorder: Recorder, out: Console) -> None:
    """Load the model, measure, and write table or JSON to stdout and the page to its file."""
    from kvlite.evaluation.journal import Journal
    from kvlite.llm.fast_import import import_engine
    from kvlite.llm.spec import RunSpec
    from kvlite.llm.text_model import TextModel

    given, spec = asked.given, RunSpec.of(options)
    content = None if given.text is None else _read(given.text)
    journal = Journal(given.journal)
    import_engine()
    from kvlite.evaluation.evaluation import Evaluation
    from kvlite.evaluation.tasks import Subject

    model = TextModel.load(spec, out)
    recorder.model(model.identity(), model.loaded.device.type)
    subject = Subject.of(model, given.batch_size)
    suites, variants = asked.suites(_length(given.length, model.loaded)), asked.variants()
    evaluation = Evaluation(subject, suites, variants, journal, content, one_by_one=asked.chunk is None)
    _run(evaluation, out)
    for note in model.text.notes:
        out.note(note)
    _write(_report(evaluation, model.name, subject), given.html, out)


def _length(wanted: int | None, loaded: LoadedModel) -> int:
    """Tokens of a conversation. Raises UsageError where the model's window does not hold as many."""
    window = loaded.window
    if wanted is None:
        return LENGTH if window is None else min(LENGTH, int(window * _WINDOW_SHARE))
    if window is not None and wanted > window:
        raise UsageError(f"--length {wanted} is more than the model's window of {window} tokens; give fewer")
    return wanted


def _run(evaluation: Evaluation, out: Console) -> None:
    """Measure under a status line; say once how long it will take, and on the way out where the results are."""
    told = False
    try:
        with out.progress() as progress:
            for pace in evaluation.run():
                if not told and pace.left_s is not None and pace.is_sampled:
                    told = True
                    held = "1 conversation" if pace.total == 1 else f"{pace.total} conversations"
                    out.note(f"{held} under all variants: {_duration(pace.left_s)} from here")
                left = "" if pace.left_s is None else f" · {_duration(pace.left_s)} left"
                progress.update(f"{pace.done:.0f} of {pace.total} · {pace.doing}{left}")
    except BaseException:
        if evaluation.journal.path is not None:
            out.note(f"what was measured is in {evaluation.journal.path}; the same command goes on from there")
        raise


def _duration(seconds: float) -> str:
    """Seconds for reading, as exact as an estimate is."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 90 else f"about {seconds / 3600:.1f} h"


def _report(evaluation: Evaluation, model: str, subject: Subject) -> Report:
    from kvlite.evaluation.report import Report
    from kvlite.evaluation.summary import summarise
    from kvlite.record.measure import installed_versions

    loaded = subject.loaded
    return Report(
        model=model,
        identity=subject.identity,
        dtype=str(loaded.dtype).removeprefix("torch."),
        quant=loaded.quant,
        device=loaded.device.type,
        versions=installed_versions(),
        summaries=tuple(summarise(result) for result in evaluation.results),
    )


def _write(report: Report, html: Path | None, out: Console) -> None:
    from kvlite.evaluation.view import eval_page, headline, suite_section

    if html is not None:
        try:
            html.write_text(eval_page(report), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write to {html}: {error.strerror}") from error
    if out.as_json:
        out.json(report.to_json(), indent=2)
        return
    out.line(headline(report))
    for summary in report.summaries:
        section = suite_section(summary)
        out.line()
        out.paragraph(f"{section.title}: {section.about}")
        out.line()
        out.show(section.tables[0])
        out.line()
        out.paragraph(section.conclusion)


def _read(file: Path) -> str:
    """The user's text. Raises UsageError where it is empty or no text."""
    from kvlite.cli.prompts import STDIN, read_file, read_stdin

    content = read_stdin(is_asked_for=True) if str(file) == STDIN else read_file(file)
    if not content.strip():
        raise UsageError(f"--text {file} is empty; give a file with text")
    return content


def _listed(value: str | None, split: Callable[[str], list[str]] = lambda text: text.split(",")) -> tuple[str, ...]:
    """The items of a list with commas; nothing of what was not given. Raises UsageError on an empty item."""
    items = [] if value is None else [item.strip() for item in split(value)]
    if "" in items:
        raise UsageError(f"{value!r} has an empty item; give names with commas between")
    return tuple(dict.fromkeys(items))
