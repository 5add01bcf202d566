"""How far an evaluation is and how long the rest takes; what is measured again after settings changed, and what not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from kvlite.cache.policy import load_policy
from kvlite.console import Console
from kvlite.errors import UsageError
from kvlite.evaluation import evaluation as timing
from kvlite.evaluation import summary
from kvlite.evaluation.conclusion import conclusion
from kvlite.evaluation.evaluation import Evaluation
from kvlite.evaluation.journal import Journal, Result
from kvlite.evaluation.suites import Suite
from kvlite.evaluation.summary import Summary
from kvlite.evaluation.variant import Variant
from kvlite.llm.spec import RunSpec
from kvlite.llm.text_model import TextModel
from kvlite.memory.budget import Budget
from kvlite.options import ModelOptions

WINDOW = Variant(load_policy("window"), Budget.parse("60tok"))
NEEDLES = Suite("needles", 2, 200, max_tokens=12)
KL = Suite("kl", 2, 120)


@pytest.fixture(autouse=True)
def up_to_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in model answers few of the questions."""
    monkeypatch.setattr(summary, "LEAST_RIGHT", 0.0)


@pytest.fixture(scope="module")
def model() -> TextModel:
    return TextModel.load(RunSpec.of(ModelOptions(model="demo", think="off", profile="off")), Console(quiet=True))


def evaluation(model: TextModel, journal: Path | None, suite: Suite = NEEDLES, variant: Variant = WINDOW) -> Evaluation:
    return Evaluation(model, [suite], [variant], Journal(journal))


def measured(model: TextModel, journal: Path, suite: Suite = NEEDLES, variant: Variant = WINDOW) -> int:
    """How many results the journal grew by."""
    before = lines(journal)
    evaluation(model, journal, suite, variant).run()
    return lines(journal) - before


def lines(journal: Path) -> int:
    return journal.read_text().count("\n") if journal.exists() else 0


# The time that is left


@pytest.mark.parametrize("suite", [NEEDLES, KL], ids=lambda suite: suite.name)
def test_a_run_ends_with_everything_done_and_nothing_left(model: TextModel, suite: Suite) -> None:
    paces = told(evaluation(model, None, suite))
    assert paces[-1].done == pytest.approx(paces[-1].total) == 4
    assert paces[-1].left_s == pytest.approx(0.0, abs=1e-6)
    assert [pace.done for pace in paces] == sorted(pace.done for pace in paces)
    assert paces[0].left_s is None


def test_the_seconds_left_are_those_of_what_was_measured_so_far(
    model: TextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(model, tmp_path / "j")
    clock = iter(range(100))
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    paces = told(evaluation(model, tmp_path / "j", replace(NEEDLES, count=4)))
    assert (paces[0].done, paces[0].total, paces[0].left_s) == (2, 8, None)  # from the journal in no time
    for took_s, pace in enumerate(paces, 1):
        fresh = pace.done - (2 if pace.doing == paces[0].doing else 4)
        assert pace.left_s is None or pace.left_s == pytest.approx(took_s * (8 - pace.done) / fresh)


class Pace(NamedTuple):
    doing: str
    done: float
    total: int
    left_s: float | None


def told(run: Evaluation) -> list[Pace]:
    """The paces that a whole run tells of."""
    paces: list[Pace] = []
    run.tell = lambda now: paces.append(Pace(now.doing, now.done, now.total, now.left_s))
    run.run()
    return paces


def test_divergence_and_perplexity_of_the_same_text_are_measured_once(model: TextModel) -> None:
    both = Evaluation(model, [KL, NEEDLES, replace(KL, name="ppl")], [WINDOW], Journal())
    kl, needles, ppl = both.run()
    assert both.total == both.done == 8
    assert [each.suite.name for each in (kl, needles, ppl)] == ["kl", "needles", "ppl"]
    assert results(kl) == results(ppl) != results(needles)


def test_a_suite_that_the_model_is_not_up_to_is_measured_under_the_full_cache_alone(
    model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "LEAST_RIGHT", 1.1)
    run = evaluation(model, None)
    (found,) = run.run()
    assert len(found.lines) == 1 and run.total == run.done == 2
    assert "too few to say more" in conclusion(found)


def test_text_longer_than_the_window_is_scored_against_what_the_window_holds(model: TextModel) -> None:
    window = model.loaded.window
    assert window is not None
    (found,) = Evaluation(model, [Suite("ppl", 1, window + 400)], [WINDOW], Journal()).run()
    assert [line.placed.variant.name for line in found.lines] == ["window", "window"]
    assert found.reference.placed.plan.slots > found.lines[1].placed.plan.slots
    assert found.lines[1].count == window + 399
    assert [*found.lines[1].figures] == ["perplexity"]  # no whole cache to diverge from
    assert f"with the last {found.reference.placed.plan.slots:,} tokens" in conclusion(found)
    with pytest.raises(UsageError, match="kl needs the whole cache"):
        Evaluation(model, [Suite("kl", 1, window + 400)], [WINDOW], Journal()).run()


def results(found: Summary) -> list[Sequence[Result]]:
    return [line.results for line in found.lines]


# What the journal holds


def test_the_same_settings_measure_nothing_again(model: TextModel, tmp_path: Path) -> None:
    assert measured(model, tmp_path / "j") == 4
    assert measured(model, tmp_path / "j") == 0


def test_more_items_measure_only_the_new_ones(model: TextModel, tmp_path: Path) -> None:
    measured(model, tmp_path / "j")
    assert measured(model, tmp_path / "j", replace(NEEDLES, count=3)) == 2


def test_another_policy_measures_itself_and_not_the_full_cache(model: TextModel, tmp_path: Path) -> None:
    measured(model, tmp_path / "j")
    assert measured(model, tmp_path / "j", variant=replace(WINDOW, policy=load_policy("h2o"))) == 2


def test_another_setting_of_the_policy_is_another_variant(model: TextModel, tmp_path: Path) -> None:
    measured(model, tmp_path / "j")
    other = replace(WINDOW, policy=load_policy("window:sinks=8"))
    assert measured(model, tmp_path / "j", variant=other) == 2


@pytest.mark.parametrize("changed", [{"seed": 1}, {"length": 400}, {"free": True}], ids=str)
def test_other_items_are_all_measured(model: TextModel, tmp_path: Path, changed: dict[str, object]) -> None:
    measured(model, tmp_path / "j")
    assert measured(model, tmp_path / "j", replace(NEEDLES, **changed)) == 4  # type: ignore[arg-type]


def test_other_weights_find_nothing(model: TextModel, tmp_path: Path) -> None:
    measured(model, tmp_path / "j")
    trained_on: Any = SimpleNamespace(identity=lambda: "demo, trained on", weights=None)
    assert measured(replace(model, files=trained_on), tmp_path / "j") == 4


def test_stopped_in_the_middle_it_goes_on_and_ends_with_the_same_results(model: TextModel, tmp_path: Path) -> None:
    whole = replace(evaluation(model, None), most_rows=1).run()  # rows round differently together
    stopped = replace(evaluation(model, tmp_path / "j"), most_rows=1)

    def stop(now: Evaluation) -> None:
        if now.done >= 2.5:
            raise KeyboardInterrupt

    stopped.tell = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert lines(tmp_path / "j") == 2
    gone_on = replace(evaluation(model, tmp_path / "j"), most_rows=1).run()
    assert [results(each) for each in gone_on] == [results(each) for each in whole]
