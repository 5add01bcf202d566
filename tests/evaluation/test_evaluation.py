"""How far an evaluation is and how long the rest takes; what is measured again after settings changed, and what not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.cache.policy import load_policy
from kvlite.console import Console
from kvlite.evaluation import evaluation as timing
from kvlite.evaluation.evaluation import Evaluation, Pace
from kvlite.evaluation.journal import Journal
from kvlite.evaluation.scoring import block_tokens
from kvlite.evaluation.suites import ForcedText, Suite
from kvlite.evaluation.tasks import Subject, Task
from kvlite.evaluation.variant import REFERENCE, Variant
from kvlite.llm.spec import RunSpec
from kvlite.llm.text_model import TextModel
from kvlite.memory.budget import Budget
from kvlite.options import ModelOptions

WINDOW = Variant(load_policy("window"), Budget.parse("60tok"))
RECALL = Suite("recall", 2, 120, max_tokens=12)
KL = Suite("kl", 2, 120)


@pytest.fixture(scope="module")
def subject() -> Subject:
    model = TextModel.load(RunSpec.of(ModelOptions(model="demo", think="off")), Console(quiet=True))
    return Subject(model.loaded, model.text, "demo", 16, 10**9)


def evaluation(subject: Subject, journal: Path | None, suite: Suite = RECALL, variant: Variant = WINDOW) -> Evaluation:
    return Evaluation(subject, [suite], [variant], Journal(journal), one_by_one=False)


def measured(subject: Subject, journal: Path, suite: Suite = RECALL, variant: Variant = WINDOW) -> int:
    """How many results the journal grew by."""
    before = len(Journal(journal))
    list(evaluation(subject, journal, suite, variant).run())
    return len(Journal(journal)) - before


# The time that is left


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(1, 1000)), min_size=1, max_size=5),
    st.floats(1e-4, 10),
    st.data(),
)
def test_at_a_steady_pace_the_seconds_left_are_those_that_come(
    parts: list[tuple[int, float]], second_per_pass: float, data: st.DataObject
) -> None:
    pace, left = Pace(), 0.0
    for units, passes in parts:
        pace.expect(units, passes)
    for units, passes in parts:
        done = data.draw(st.integers(0, units))
        if done:
            pace.spend(done * passes * second_per_pass, done, passes)
        left += (units - done) * passes * second_per_pass
    found = pace.left_s
    assert found is None if pace.timed == 0 else found == pytest.approx(left, abs=1e-6)


def test_nothing_is_said_of_the_time_before_anything_was_timed() -> None:
    pace = Pace()
    pace.expect(10, 5.0)
    pace.skip(4, 5.0)  # from a journal
    assert (pace.done, pace.total, pace.left_s, pace.is_sampled) == (4, 10, None, False)


def test_units_from_the_journal_take_no_time_and_are_not_waited_for() -> None:
    pace = Pace()
    pace.expect(10, 5.0)
    pace.skip(4, 5.0)
    pace.spend(3.0, 2, 5.0)
    assert pace.left_s == pytest.approx(4 * 1.5)


def test_cheap_units_measured_first_do_not_promise_that_dear_ones_are_cheap() -> None:
    pace = Pace()
    pace.expect(10, 4.0)
    pace.expect(10, 400.0)
    pace.spend(10.0, 10, 4.0)
    assert pace.left_s == pytest.approx(1000.0)


def test_what_is_not_measured_after_all_is_not_waited_for() -> None:
    pace = Pace()
    pace.expect(10, 4.0)
    pace.expect(10, 8.0)
    pace.expect(-10, 8.0)
    pace.spend(5.0, 5, 4.0)
    assert (pace.total, pace.left_s) == (10, pytest.approx(5.0))


def test_passes_of_forced_text_are_those_of_both_caches(subject: Subject) -> None:
    task = Task.of(subject, KL)
    lengths = [len(text.ids) for text in task.material if isinstance(text, ForcedText)]
    one_by_one = task.place(replace(WINDOW, chunk_limit=1), task.tokens)
    full = [-(-length // block_tokens(1)) for length in lengths]
    assert task.passes(one_by_one) == (sum(full) + sum(lengths)) / len(lengths)
    assert task.passes(task.place(REFERENCE, task.tokens)) < task.passes(one_by_one) / 10


def test_passes_of_a_conversation_are_its_chunks_and_its_answers(subject: Subject) -> None:
    task = Task.of(subject, RECALL)
    turns = [turn for conversation in task.fed for turn in conversation]
    chunk = task.place(REFERENCE, task.tokens).plan.chunk
    expected = sum(-(-prompt // chunk) + answer for prompt, answer in turns) / len(task.fed)
    assert task.passes(task.place(REFERENCE, task.tokens)) == expected
    assert task.passes(task.place(replace(WINDOW, chunk_limit=1), task.tokens)) > expected


@pytest.mark.parametrize("suite", [RECALL, KL], ids=lambda suite: suite.name)
def test_a_run_ends_with_everything_done_and_nothing_left(subject: Subject, suite: Suite) -> None:
    paces = list(evaluation(subject, None, suite).run())
    assert paces[-1].done == pytest.approx(paces[-1].total) == 4
    assert paces[-1].left_s == pytest.approx(0.0, abs=1e-6)
    assert [pace.done for pace in paces] == sorted(pace.done for pace in paces)
    assert paces[0].left_s is None and not paces[0].is_sampled
    assert paces[-1].is_sampled


def test_what_is_said_of_the_time_is_near_what_it_takes_where_a_pass_takes_a_second(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(subject, monkeypatch)
    run = evaluation(subject, None, KL).run()
    first = next(pace for pace in run if pace.is_sampled)
    since = passes.count
    list(run)
    assert first.left_s == pytest.approx(passes.count - since, rel=0.15)


class Passes:
    """Counts the model's forward passes and makes the clock show that."""

    def __init__(self, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        forward = type(subject.loaded).forward

        def counting(*args: object, **kwargs: object) -> object:
            self.count += 1
            return forward(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(type(subject.loaded), "forward", counting)
        monkeypatch.setattr(timing.time, "monotonic", lambda: float(self.count))


def test_divergence_and_perplexity_of_the_same_text_are_measured_once(subject: Subject) -> None:
    both = Evaluation(subject, [KL, RECALL, replace(KL, name="ppl")], [WINDOW], Journal(), one_by_one=False)
    paces = list(both.run())
    kl, recall, ppl = both.results
    assert paces[-1].total == 8
    assert [result.suite.name for result in both.results] == ["kl", "recall", "ppl"]
    assert kl.measured == ppl.measured != recall.measured


# What the journal holds


def test_the_same_settings_measure_nothing_again(subject: Subject, tmp_path: Path) -> None:
    assert measured(subject, tmp_path / "j") == 4
    assert measured(subject, tmp_path / "j") == 0


def test_more_conversations_measure_only_the_new_ones(subject: Subject, tmp_path: Path) -> None:
    measured(subject, tmp_path / "j")
    assert measured(subject, tmp_path / "j", replace(RECALL, count=3)) == 2


def test_another_policy_measures_itself_and_not_the_full_cache(subject: Subject, tmp_path: Path) -> None:
    measured(subject, tmp_path / "j")
    assert measured(subject, tmp_path / "j", variant=replace(WINDOW, policy=load_policy("h2o"))) == 2


def test_another_setting_of_the_policy_is_another_variant(subject: Subject, tmp_path: Path) -> None:
    measured(subject, tmp_path / "j")
    other = replace(WINDOW, policy=load_policy("window:sinks=8"))
    assert measured(subject, tmp_path / "j", variant=other) == 2


@pytest.mark.parametrize("changed", [{"seed": 1}, {"length": 90}, {"max_tokens": 11}, {"split": "train"}], ids=str)
def test_other_conversations_are_all_measured(subject: Subject, tmp_path: Path, changed: dict[str, object]) -> None:
    measured(subject, tmp_path / "j")
    assert measured(subject, tmp_path / "j", replace(RECALL, **changed)) == 4  # type: ignore[arg-type]


def test_other_weights_find_nothing(subject: Subject, tmp_path: Path) -> None:
    measured(subject, tmp_path / "j")
    assert measured(replace(subject, identity="demo, trained on"), tmp_path / "j") == 4


def test_stopped_in_the_middle_it_goes_on_and_ends_with_the_same_results(subject: Subject, tmp_path: Path) -> None:
    single = replace(subject, most_rows=1)
    whole = evaluation(single, None)
    list(whole.run())
    stopped = evaluation(single, tmp_path / "j").run()
    for pace in stopped:
        if pace.done >= 2.5:
            break
    close(stopped)
    assert len(Journal(tmp_path / "j")) == 2
    gone_on = evaluation(single, tmp_path / "j")
    list(gone_on.run())
    assert gone_on.results == whole.results


def close(run: Iterator[Pace] | Sequence[Pace]) -> None:
    run.close()  # type: ignore[union-attr]
