"""Drafted tokens: whatever is drafted, an answer and its row are those of decoding one token after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvlite.cache.policy import policy_names
from kvlite.engine.decode_graphs import GraphRecorder
from kvlite.engine.engine import Engine
from kvlite.engine.lookup import Draft, Lookup
from kvlite.engine.request import Completion, FinishReason, Request, Sampling, Token, TokenRules
from kvlite.engine.row import Row
from kvlite.engine.speculation import Pace, Speculation
from kvlite.models.loaded import LoadedModel
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted, answers, make_engine
from tests.matrix import but_few

FAMILIES = ["gemma2", "gpt2", "gpt_oss", "deepseek_v3", "gemma3n_text"]
FEW = Sampling(logit_bias=tuple((token, 100.0) for token in (5, 6, 7)))
CYCLING = Request("a", tuple(range(20, 30)), FEW, max_tokens=120)
"""A request whose answer, of three tokens, soon repeats itself."""

ANYTHING = [(3, 0), (2, 2), (0, 3), (7, 0), (1, 1), (15, 1), (0, 1)]


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return admitted(tiny_model("llama", {}))


class Scripted(Speculation):
    """Drafts made of the next ids of `truth` and then of wrong ones, as many of each as `script` says in turn."""

    def __init__(self, truth: tuple[int, ...], script: list[tuple[int, int]]) -> None:
        super().__init__(64)
        self.truth, self.script, self.calls = truth, script, 0

    def draft(self, row: Row, most: int) -> tuple[int, ...]:
        super().draft(row, most)
        right, wrong = self.script[self.calls % len(self.script)]
        self.calls += 1
        assert row.job is not None
        at = len(row.job.answer)
        ids = [*self.truth[at : at + right]]
        next_one = self.truth[at + len(ids)] if at + len(ids) < len(self.truth) else 0
        ids += [(next_one + 1 + number) % 60 + 2 for number in range(wrong)]
        return tuple(ids[: max(0, most)])


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(torch.randint(2, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def assert_same_row(engine: Engine, plain: Engine, row: int = 0) -> None:
    """Every tensor and every count of a row is that of the row of `plain`."""
    mine, theirs = engine.rows[row], plain.rows[row]
    for name in ("seen", "rot", "unfed", "said", "used", "echoed", "pins"):
        assert getattr(mine, name) == getattr(theirs, name), name
    assert engine.rows.counts(row) == plain.rows.counts(row)
    for one, other in zip(engine.cache.parts, plain.cache.parts, strict=True):
        for name, tensor in one.tensors.items():
            torch.testing.assert_close(
                tensor[row, :, :-1].float(), other.tensors[name][row, :, :-1].float(), rtol=1e-4, atol=1e-5, msg=name
            )


def told(completion: Completion) -> tuple[Any, ...]:
    return completion.ids, completion.finish_reason, completion.evicted, completion.kv, completion.cut_short


def assert_same(loaded: LoadedModel, script: list[tuple[int, int]], asked: list[Request], **options: Any) -> Engine:
    """Answer requests of one row after another with drafts by `script` and without, on equal engines."""
    plain, engine = make_engine(loaded, **options), make_engine(loaded, **options, speculate=64)
    for request in asked:
        expected = list(plain.run([request]))
        assert isinstance(expected[-1], Completion)
        engine.decoder.speculation = Scripted(expected[-1].ids, script)
        found = list(engine.run([request]))
        assert isinstance(found[-1], Completion)
        assert found[:-1] == expected[:-1] and told(found[-1]) == told(expected[-1])
        for mine, theirs in zip(found[-1].logprobs, expected[-1].logprobs, strict=True):
            assert mine.chosen == pytest.approx(theirs.chosen, abs=1e-4)
        assert_same_row(engine, plain)
    return engine


def in_a_row(*requests: Request) -> list[Request]:
    return list(requests)


@pytest.mark.parametrize("policy", but_few(policy_names(), "heavy-hitter", "replay", "window"))
def test_any_draft_leaves_the_answer_and_the_row_of_plain_decoding(llama: LoadedModel, policy: str) -> None:
    asked = [Request(str(i), prompt(i, 9 + 4 * i), max_tokens=24, row=0) for i in range(4)]
    on_full = "stop" if policy == "full" else "evict"
    assert_same(llama, ANYTHING, asked, budget="64tok", policy=policy, on_full=on_full)


@given(
    script=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=8),
    budget=st.integers(24, 80),
    length=st.integers(3, 30),
    most=st.integers(1, 50),
    sampling=st.sampled_from(
        [
            Sampling(),
            Sampling(temperature=0.8, top_p=0.9, seed=7),
            Sampling(temperature=1.2, repetition_penalty=1.3, frequency_penalty=0.5, seed=3),
        ]
    ),
    policy=st.sampled_from(["heavy-hitter", "replay", "keyformer", "window"]),
)
def test_whatever_is_drafted(
    llama: LoadedModel,
    script: list[tuple[int, int]],
    budget: int,
    length: int,
    most: int,
    sampling: Sampling,
    policy: str,
) -> None:
    rules = TokenRules(no_repeat_ngram_size=4, min_new_tokens=5)
    first = Request("a", prompt(budget, length), sampling, most, row=0, logprobs=2)
    second = Request("b", prompt(length, 5), sampling, 20, frozenset({9, 17, 30}), row=0, rules=rules)
    assert_same(llama, script, in_a_row(first, second), budget=f"{budget}tok", policy=policy)


@pytest.mark.parametrize("family", but_few(FAMILIES, "gemma2", "gpt2"))
def test_windows_learned_positions_sinks_and_latent_heads_are_no_different(family: str) -> None:
    loaded = admitted(tiny_model(family, SUPPORTED[family]))
    asked = [Request(str(i), prompt(i, 11), max_tokens=30, row=0) for i in range(3)]
    assert_same(loaded, ANYTHING, asked, budget="256tok")


@pytest.mark.parametrize("kv_dtype", ["int8", "int4"])
def test_low_bit_slots_are_no_different(kv_dtype: str) -> None:
    loaded = admitted(tiny_model("llama", {}))
    loaded.model.double()  # in fp32, the last bit of a chunk may round a number to the next code
    asked = [Request("a", prompt(1, 11), max_tokens=40, row=0)]
    assert_same(loaded, ANYTHING, asked, budget="48tok", kv_dtype=kv_dtype)


def test_heads_with_slots_of_their_own_are_no_different(llama: LoadedModel) -> None:
    shares = [[3.0 ** ((index + head) % 3) for head in range(2)] for index in range(len(llama.shape.layers))]
    asked = [Request("a", prompt(1, 11), max_tokens=60, row=0)]
    engine = assert_same(llama, ANYTHING, asked, budget="120tok", head_shares=lambda slots: shares)
    assert any(len(layer.parts) > 1 for layer in engine.cache.layers.values())


def test_replayed_steps_and_chunks_take_turns(llama: LoadedModel) -> None:
    asked = [Request("a", prompt(1, 11), max_tokens=60, row=0)]
    engine = assert_same(llama, ANYTHING, asked, budget="48tok", recorder=GraphRecorder())
    assert engine.step == "captured"


def test_pins_and_snapshots_know_nothing_of_drafts(llama: LoadedModel) -> None:
    first = Request("a", prompt(1, 11), max_tokens=15, row=0, pins=((2, 6),))
    engine = assert_same(llama, ANYTHING, [first], budget="64tok")
    plain = make_engine(llama, "64tok")
    list(plain.run([first]))
    held, expected = engine.rows.snapshot(0), plain.rows.snapshot(0)
    assert held.num_bytes == expected.num_bytes and held.cache.live == expected.cache.live
    engine.rows.restore(0, held)
    assert_same_row(engine, plain)


@pytest.mark.parametrize("policy", ["heavy-hitter", "replay"])
@pytest.mark.parametrize("after", [3, 4, 5])
def test_an_answer_that_is_cancelled_in_a_chunk_ends_there(llama: LoadedModel, policy: str, after: int) -> None:
    request = Request("a", prompt(1, 11), max_tokens=40, row=0)
    truth = answers(make_engine(llama, "64tok", policy), [request])["a"].ids

    def cancelled(engine: Engine) -> list[Token | Completion]:
        events = []
        for event in engine.run([request]):
            events.append(event)
            if isinstance(event, Token) and event.index == after:
                engine.cancel("a", FinishReason.STOP)
        return events

    plain, engine = (make_engine(llama, "64tok", policy, speculate=64) for _ in range(2))
    plain.decoder.speculation = Speculation("off")
    engine.decoder.speculation = Scripted(truth, [(8, 0)])
    expected, found = cancelled(plain), cancelled(engine)
    assert found[:-1] == expected[:-1] and told(found[-1]) == told(expected[-1])  # type: ignore[arg-type]
    assert_same_row(engine, plain)


def test_a_loop_that_is_left_in_a_chunk_leaves_the_row_at_the_last_token(llama: LoadedModel) -> None:
    request = Request("a", prompt(1, 11), max_tokens=40, row=0)
    truth = answers(make_engine(llama, "64tok"), [request])["a"].ids
    plain, engine = (make_engine(llama, "64tok", speculate=64) for _ in range(2))
    plain.decoder.speculation = Speculation("off")
    engine.decoder.speculation = Scripted(truth, [(8, 0)])
    for one in (plain, engine):
        events = one.run([request])
        for _ in range(6):
            next(events)
        events.close()  # type: ignore[attr-defined]
    assert_same_row(engine, plain)


def test_rows_of_a_batch_answer_as_without_drafts(llama: LoadedModel) -> None:
    asked = [Request(str(i), prompt(i, 3 + 7 * i) * 2, max_tokens=(12, 20, 150)[i % 3]) for i in range(5)]
    plain, drafting = (answers(make_engine(llama, "200tok", rows=3, speculate=n), asked) for n in ("off", 6))
    assert {key: one.ids for key, one in drafting.items()} == {key: one.ids for key, one in plain.items()}
    assert sum(one.accepted for one in drafting.values()) > 0


def test_drafts_are_counted_and_save_forward_passes(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    forward = LoadedModel.forward
    monkeypatch.setattr(LoadedModel, "forward", lambda *given: passes.append(1) or forward(*given))
    request = Request("a", prompt(3, 6) * 4, max_tokens=60)
    done = {n: answers(make_engine(llama, "full", "full", speculate=n), [request])["a"] for n in ("off", 8)}
    assert done[8].ids == done["off"].ids and done["off"].drafted == 0
    assert 0 < done[8].accepted <= done[8].drafted
    passes.clear()
    answers(make_engine(llama, "full", "full", speculate=8), [request])
    assert len(passes) == 60 - done[8].accepted


def test_a_model_with_state_drafts_nothing_and_says_why() -> None:
    loaded = admitted(tiny_model("lfm2", SUPPORTED["lfm2"]))
    request = Request("a", prompt(3, 6) * 3, max_tokens=20)
    said: list[str] = []
    engine = make_engine(loaded, "64tok", speculate=8, warn=said.append)
    assert "state" in engine.speculation.obstacle and len(said) == 1 and said[0].startswith("--speculate 8: ")
    done = answers(engine, [request])["a"]
    assert done.drafted == 0 and done.ids == answers(make_engine(loaded, "64tok"), [request])["a"].ids


def test_auto_drafts_once_a_chunk_equalled_single_steps(llama: LoadedModel) -> None:
    engine = make_engine(llama, "full", "full", speculate="auto")
    quick(engine)
    done = answers(engine, [CYCLING])["a"]
    assert done.accepted > 20 and not engine.speculation.obstacle
    assert done.ids == answers(make_engine(llama, "full", "full"), [CYCLING])["a"].ids


def test_auto_drafts_no_more_where_a_chunk_gives_other_logits(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = LoadedModel.forward

    def uneven(loaded: LoadedModel, ids: torch.Tensor, *given: Any) -> torch.Tensor:
        logits = forward(loaded, ids, *given)
        return logits + 0.01 * logits.abs().max() if given[-1] > 1 else logits

    monkeypatch.setattr(LoadedModel, "forward", uneven)
    engine = make_engine(llama, "full", "full", speculate="auto")
    quick(engine)
    done = answers(engine, [CYCLING])["a"]
    assert "logits depend" in engine.speculation.obstacle and done.drafted == 0


def quick(engine: Engine) -> None:
    """Let chunks cost next to nothing, whatever the clock says."""

    class Free(Pace):
        def took(self, width: int, seconds: float) -> None:
            self.seconds[width] = 1.0 + 0.01 * width

    engine.speculation.pace = Free()


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_a_draft_is_what_followed_the_same_ids(said: list[int], most: int) -> None:
    grown: list[int] = []
    lookup = Lookup(grown)
    for token in said:
        grown.append(token)
        draft = lookup.draft(most)
        sizes = [size for size in (4, 3, 2) if latest(grown, size) is not None]
        assert (draft is None) == (not sizes)
        if draft is not None:
            at = latest(grown, sizes[0])
            assert at is not None
            followed = grown[at:][:most]
            assert len(draft.ids) == most and list(draft.ids[: len(followed)]) == followed
            assert draft.matched >= sizes[0] and grown[at - draft.matched : at] == grown[-draft.matched :]


def latest(said: list[int], size: int) -> int | None:
    """The end of the latest earlier occurrence of the last `size` ids."""
    ends = [end for end in range(size, len(said)) if said[end - size : end] == said[len(said) - size :]]
    return ends[-1] if ends and len(said) > size else None


def test_an_id_that_is_taken_back_is_not_drafted() -> None:
    said = [1, 2, 3, 4, 1, 2, 9]
    lookup = Lookup(said)
    lookup.draft(4)
    said.pop()
    said += [7, 8, 1, 2]
    assert lookup.draft(2) == Draft((7, 8), 2)


def test_chunks_are_chosen_by_what_they_promise_for_their_price() -> None:
    long, proven = Draft(tuple(range(15)), 16), {4, 8, 16}
    pace = Pace(credit=16.0)
    assert pace.best(long, proven) == 0  # no step was timed
    pace.took(1, 1.0)
    pace.right = [0.98] * 5
    assert pace.best(long, proven) == 15
    for width, seconds in ((4, 1.2), (8, 8.0), (16, 16.0)):
        pace.took(width, seconds)
    assert pace.best(long, proven) == 3
    pace.right = [0.05] * 5
    assert pace.best(long, proven) == 0


def test_chunks_that_win_nothing_lose_next_to_nothing() -> None:
    pace, lost, steps = Pace(), 0.0, 2000
    for _ in range(steps):
        pace.took(1, 1.0)
        pace.right = [0.98] * 5  # believed against all that is seen
        if width := pace.best(Draft(tuple(range(15)), 16), ()):
            cost = 1 + 0.25 * width
            pace.took(width + 1, cost)
            pace.earn(-cost)
            lost += cost
    assert 3 <= lost <= 3 + 0.01 * steps


def test_a_chunk_that_was_slow_once_is_timed_again() -> None:
    pace = Pace()
    pace.took(1, 1.0)
    pace.took(4, 40.0)
    pace.right = [0.98] * 5
    assert pace.best(Draft((1, 2, 3), 16), {4}) == 0
    for _ in range(3000):
        pace.took(1, 1.0)
    assert pace.best(Draft((1, 2, 3), 16), {4}) == 3


def test_pace_learns_what_is_right_of_single_steps() -> None:
    speculation = Speculation("auto")
    row = Row(0)
    row.said.extend([5, 6, 7, 5, 6])
    speculation.draft(row, 4)
    before = speculation.pace.right[0]
    speculation.stepped(row, 7, torch.zeros(10), 1.0)
    assert speculation.pace.right[0] > before
