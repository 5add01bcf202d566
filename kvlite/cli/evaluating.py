"""The work of `kvlite eval`: the model, the suites and variants, progress, the outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvlite.cache.policy import load_policy
from kvlite.cache.policy_text import split_policies
from kvlite.cli.prompts import STDIN, read_file, read_stdin
from kvlite.console import Console
from kvlite.errors import OutputError, UsageError
from kvlite.evaluation.conclusion import recommendation
from kvlite.evaluation.evaluation import Evaluation
from kvlite.evaluation.journal import Journal
from kvlite.evaluation.suites import Suite
from kvlite.evaluation.summary import Summary
from kvlite.evaluation.variant import Variant
from kvlite.evaluation.view import eval_json, eval_page, headline, suite_section
from kvlite.llm.spec import RunSpec
from kvlite.llm.text_model import TextModel, import_engine
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import slot_format
from kvlite.memory.plan import MOST_CHUNK
from kvlite.options import ModelOptions
from kvlite.record.measure import versions
from kvlite.record.recorder import Recorder

if TYPE_CHECKING:
    from kvlite.cli.eval import EvalOptions

_LENGTH = 900  # tokens of an item, where nobody names a number and the window holds as many
_WINDOW_SHARE = 0.9  # the rest is for the model's own answers


def check(given: EvalOptions) -> None:
    """Raise UsageError on mistakes that show before any model is looked for, files that are one among them."""
    _variants(given, None)
    _suites(given, None)
    files = {"--text": given.text, "--journal": given.journal, "--html": given.html}
    for (one, path), (other, file) in combinations(files.items(), 2):
        if path is not None and file is not None and path.resolve() == file.resolve():
            raise UsageError(f"{one} and {other} name the same file {path}; give another")


def evaluate(given: EvalOptions, options: ModelOptions, chunk: int | None, recorder: Recorder, out: Console) -> None:
    """Load the model, measure, and write table or JSON to stdout and the page to its file.

    `chunk` is the most prompt tokens fed at once, None as many as usual.
    """
    spec = RunSpec.of(options)
    content = None if given.text is None else _read(given.text)
    journal = Journal(given.journal)
    import_engine()
    model = TextModel.load(spec, out)
    recorder.model(model.identity(), model.loaded.device.type)
    suites, variants = _suites(given, model.loaded.window), _variants(given, chunk)
    evaluation = Evaluation(model, suites, variants, journal, content, given.batch_size)
    summaries = _run(evaluation, out)
    about = {
        "model": model.name,
        "identity": model.files.identity(),
        "dtype": model.loaded.shape.dtype,
        "quant": model.identity().quant,
        "device": model.loaded.device.type,
        "versions": versions(),
    }
    _write(about, summaries, given.html, out)


def _suites(given: EvalOptions, window: int | None) -> list[Suite]:
    """The suites on a model with this window. Raises UsageError on unknown names, and on too long items."""
    length = given.length or (_LENGTH if window is None else min(_LENGTH, int(window * _WINDOW_SHARE)))
    suites = [
        Suite(name, given.items or 1, length, given.seed, given.free, given.answer_tokens)
        for name in _listed(given.suite)
    ]
    if window is not None and length > window and any(suite.name != "ppl" for suite in suites):
        raise UsageError(
            f"--length {length} is more than the model's window of {window} tokens; give fewer, or --suite ppl"
        )
    return suites


def _variants(given: EvalOptions, chunk: int | None) -> list[Variant]:
    """Policies by slot formats by budgets, fed `chunk` prompt tokens at once or as many as usual.

    Raises UsageError on a word that is none of these.
    """
    policies = [load_policy(name) for name in _listed(given.policy, split_policies)]
    formats = _listed(given.kv_dtype)
    for name in formats:
        slot_format(name, "float32")
    found = [
        Variant(policy, budget, kv_dtype, chunk or MOST_CHUNK)
        for budget in _budgets(given)
        for policy in policies
        for kv_dtype in formats
        if policy.evicts  # the full cache is the reference, whatever the budget
    ]
    return list(dict.fromkeys(found))


def _budgets(given: EvalOptions) -> list[Budget]:
    sizes = [Budget.parse(size) for size in _listed(given.kv_budget)]
    for size in sizes:
        if size.kind not in (BudgetKind.BYTES, BudgetKind.TOKENS):
            raise UsageError(f"--kv-budget {size} is no size; give bytes or tokens, or --share for percent")
    return [*map(_share, _listed(given.share)), *sizes]


def _listed(value: str | None, split: Callable[[str], list[str]] = lambda text: text.split(",")) -> tuple[str, ...]:
    """The items of a list with commas; nothing of what was not given. Raises UsageError on an empty item."""
    items = [] if value is None else [item.strip() for item in split(value)]
    if "" in items:
        raise UsageError(f"{value!r} has an empty item; give names with commas between")
    return tuple(dict.fromkeys(items))


def _share(text: str) -> Budget:
    try:
        return Budget.parse(f"{text.removesuffix('%')}%")
    except UsageError as error:
        raise UsageError(f"--share {text} is no percentage; give a number above 0 and at most 100") from error


def _run(evaluation: Evaluation, out: Console) -> list[Summary]:
    """Measure under a status line; on the way out say where the results are."""
    try:
        with out.progress() as progress:
            evaluation.tell = lambda now: progress(_progress(now))
            return evaluation.run()
    except BaseException:
        if evaluation.journal.path is not None:
            out.note(f"what was measured is in {evaluation.journal.path}; the same command goes on from there")
        raise


def _progress(now: Evaluation) -> str:
    left = "" if now.left_s is None else f" · about {timedelta(seconds=round(now.left_s))} left"
    return f"{now.done:.0f} of {now.total} · {now.doing}{left}"


def _write(about: Mapping[str, Any], summaries: Sequence[Summary], html: Path | None, out: Console) -> None:
    """The table or JSON first, so that it is there where the page cannot be written. Raises OutputError."""
    _show(about, summaries, out)
    if html is not None:
        try:
            html.write_text(eval_page(about, summaries), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {html}: {error.strerror}") from error


def _show(about: Mapping[str, Any], summaries: Sequence[Summary], out: Console) -> None:
    if out.as_json:
        out.json(eval_json(about, summaries), indent=2)
        return
    out.line(headline(about))
    for summary in summaries:
        section = suite_section(summary)
        out.line()
        out.paragraph(f"{section.title}: {section.about}")
        out.line()
        out.show(section.tables[0])
        out.line()
        out.paragraph(section.conclusion)
    out.line()
    out.paragraph(recommendation(summaries))


def _read(file: Path) -> str:
    """The user's text. Raises UsageError where it is empty or no text."""
    content = read_stdin(is_asked_for=True) if str(file) == STDIN else read_file(file)
    if not content.strip():
        raise UsageError(f"--text {file} is empty; give a file with text")
    return content
