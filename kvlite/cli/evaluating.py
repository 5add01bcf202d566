"""The work of `kvlite eval`: the model, the suites and variants, progress, the outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kvlite.cli.prompts import STDIN, read_file, read_stdin
from kvlite.cli.report import write_page
from kvlite.errors import UsageError

if TYPE_CHECKING:
    from kvlite.cli.eval import EvalOptions
    from kvlite.console import Console
    from kvlite.evaluation.evaluation import Evaluation
    from kvlite.evaluation.report import Report
    from kvlite.options import ModelOptions
    from kvlite.record.recorder import Recorder


def evaluate(given: EvalOptions, options: ModelOptions, chunk: int | None, recorder: Recorder, out: Console) -> None:
    """Load the model, measure, and write table or JSON to stdout and the page to its file.

    `chunk` is the most prompt tokens fed at once; where it is None, forced text is also fed one by one.
    """
    from kvlite.evaluation.journal import Journal
    from kvlite.llm.fast_import import import_engine
    from kvlite.llm.spec import RunSpec
    from kvlite.llm.text_model import TextModel

    spec = RunSpec.of(options)
    content = None if given.text is None else _read(given.text)
    journal = Journal(given.journal)
    import_engine()
    from kvlite.evaluation.evaluation import Evaluation
    from kvlite.evaluation.tasks import Subject

    model = TextModel.load(spec, out)
    recorder.model(model.identity(), model.loaded.device.type)
    subject = Subject.of(model, given.batch_size)
    suites, variants = given.suites(given.tokens(model.loaded.window)), given.variants(chunk)
    evaluation = Evaluation(subject, suites, variants, journal, content, one_by_one=chunk is None)
    _run(evaluation, out)
    for note in model.text.notes:
        out.note(note)
    _write(_report(evaluation, model.name), given.html, out)


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


def _report(evaluation: Evaluation, model: str) -> Report:
    from kvlite.evaluation.report import Report
    from kvlite.evaluation.summary import summarise
    from kvlite.record.measure import installed_versions

    subject = evaluation.subject
    loaded = subject.loaded
    return Report(
        model=model,
        identity=subject.identity,
        dtype=loaded.dtype_name,
        quant=loaded.quant,
        device=loaded.device.type,
        versions=installed_versions(),
        summaries=tuple(summarise(result) for result in evaluation.results),
    )


def _write(report: Report, html: Path | None, out: Console) -> None:
    from kvlite.evaluation.view import eval_page, headline, suite_section

    if html is not None:
        write_page(html, eval_page(report))
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
    content = read_stdin(is_asked_for=True) if str(file) == STDIN else read_file(file)
    if not content.strip():
        raise UsageError(f"--text {file} is empty; give a file with text")
    return content
