"""A fast-forwarded row is what it claims: a row that a conversation of that length could have left."""

from __future__ import annotations

import pytest
import torch

from kvlite.engine.engine import Engine
from kvlite.engine.request import Request
from kvlite.errors import ContextFull
from kvlite.speed.synthetic_cache import fast_forward, longest_conversation
from tests.architectures import SUPPORTED, tiny_model
from tests.engine_for_tests import admitted, answers, make_engine

PROMPT = tuple(range(5, 29))
MILLION = 1_000_000


def forwarded(family: str, seen: int, budget: str = "32tok", **options: str) -> Engine:
    """An engine whose row 0 was fed a prompt and put at `seen` tokens."""
    engine = make_engine(admitted(tiny_model(family, SUPPORTED[family])), budget, **options)
    answers(engine, [Request("prompt", PROMPT, max_tokens=1, row=0)])
    fast_forward(engine, 0, engine.rows.snapshot(0), seen)
    return engine


@pytest.mark.parametrize("kv_dtype", ["auto", "int8", "int4"])
@pytest.mark.parametrize("policy", ["heavy-hitter", "h2o", "scissorhands", "window", "keydiff", "snapkv"])
def test_counts_and_positions_are_those_of_a_million_tokens(policy: str, kv_dtype: str) -> None:
    engine = forwarded("llama", MILLION, policy=policy, kv_dtype=kv_dtype)
    counts = engine.rows.counts(0)
    slots = engine.plan.slots
    assert (counts.tokens_seen, counts.tokens_kept, counts.tokens_evicted) == (MILLION, slots, MILLION - slots)
    assert counts.live_bytes == sum(part.slot_bytes * slots for part in engine.cache.parts)
    for part in engine.cache.parts:
        held = part.slots.pos[0, :, :slots].sort(-1).values
        assert (held.diff(dim=-1) > 0).all(), "a position twice in one head"
        assert (held[:, : engine.rows.policy.sinks] == torch.arange(engine.rows.policy.sinks)).all()
        assert (
            held[:, -part.group.protection.recent :] == torch.arange(MILLION - part.group.protection.recent, MILLION)
        ).all()
        ranks = part.slots.pos[0, :, :slots].argsort(-1).argsort(-1)
        assert torch.equal(part.slots.rot[0, :, :slots], ranks.int()), (
            "rotations are not consecutive in the order of tokens"
        )


def test_keys_are_turned_to_the_rotations_they_carry() -> None:
    """Turned back to rotation 0, every key is one of those that were fed, turned back."""
    engine = make_engine(admitted(tiny_model("llama", SUPPORTED["llama"])), "32tok")
    answers(engine, [Request("prompt", PROMPT, max_tokens=1, row=0)])
    part = engine.cache.parts[0]
    before = unturned(engine, len(PROMPT))
    fast_forward(engine, 0, engine.rows.snapshot(0), MILLION)
    after = unturned(engine, part.num_slots)
    distance = torch.cdist(after, before, compute_mode="donot_use_mm_for_euclid_dist").min(-1).values
    assert distance.max() < 1e-4


def unturned(engine: Engine, live: int) -> torch.Tensor:
    """The first layer's live keys [H_KV, live, D] as they were before any rotation."""
    part = engine.cache.parts[0]
    assert engine.cache.layers[0].rotation is not None
    keys = part.tensors["k"][0, :, :live].clone()
    engine.cache.layers[0].rotation.rotate_(keys, -part.slots.rot[0, :, :live])
    return keys


def test_before_the_slots_are_full_the_row_is_that_of_a_conversation_which_was_fed() -> None:
    engine = forwarded("llama", 20, "64tok")
    assert engine.rows.counts(0).tokens_kept == 20
    for part in engine.cache.parts:
        assert torch.equal(part.slots.pos[0, :, :20].sort(-1).values[0], torch.arange(20, dtype=torch.int32))
        assert torch.equal(part.slots.rot[0, :, :20], part.slots.pos[0, :, :20])
        assert (part.slots.pos[0, :, 20:] == -1).all()


def test_a_sliding_layer_holds_the_newest_tokens() -> None:
    engine = forwarded("gemma2", MILLION, "64tok")
    sliding = [part for part in engine.cache.parts if part.shape.window is not None]
    assert sliding
    for part in sliding:
        newest = torch.arange(MILLION - part.num_slots, MILLION, dtype=torch.int32)
        assert torch.equal(part.slots.pos[0, :, : part.num_slots].sort(-1).values[0], newest)


def test_the_score_of_a_token_survives_the_jump() -> None:
    """What attention gave a token in all grows with its age, so that mass per token of age stays what it was."""
    engine = make_engine(admitted(tiny_model("llama", SUPPORTED["llama"])), "32tok", policy="h2o")
    answers(engine, [Request("prompt", PROMPT, max_tokens=1, row=0)])
    part = engine.cache.parts[0]
    assert part.slots.statistic is not None
    was = per_age(engine, len(PROMPT), len(PROMPT))
    fast_forward(engine, 0, engine.rows.snapshot(0), MILLION)
    now = per_age(engine, part.num_slots, MILLION)
    nearest = (now[..., None] - was[:, None, :]).abs().min(-1).values
    assert (nearest <= 1e-4 * was.max()).all()


def test_a_score_that_fades_is_carried_over_as_it_is() -> None:
    engine = make_engine(admitted(tiny_model("llama", SUPPORTED["llama"])), "32tok", policy="heavy-hitter")
    answers(engine, [Request("prompt", PROMPT, max_tokens=1, row=0)])
    part = engine.cache.parts[0]
    assert part.slots.statistic is not None
    was = part.slots.statistic[0, :, : len(PROMPT)].clone()
    fast_forward(engine, 0, engine.rows.snapshot(0), MILLION)
    now = part.slots.statistic[0, :, : part.num_slots]
    assert (now[..., None] == was[:, None, :]).any(-1).all()


def per_age(engine: Engine, live: int, seen: int) -> torch.Tensor:
    """Attention mass per token of age of the first layer's live slots [H_KV, live]."""
    part = engine.cache.parts[0]
    assert part.slots.statistic is not None
    return part.slots.statistic[0, :, :live] / (seen - part.slots.pos[0, :, :live])


def test_a_conversation_goes_on_from_there_and_stays_inside_its_budget() -> None:
    engine = forwarded("llama", MILLION)
    done = answers(engine, [Request("on", PROMPT, max_tokens=40, row=0)])["on"]
    assert done.error is None
    assert done.kv.tokens_seen == MILLION + 1 + len(PROMPT) + 39  # the prompt's own answer was waiting to be fed
    assert done.kv.tokens_kept == engine.plan.slots


def test_the_same_seed_gives_the_same_row() -> None:
    once, again = forwarded("llama", MILLION), forwarded("llama", MILLION)
    for first, second in zip(once.cache.tensors(), again.cache.tensors(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("family", "options", "end"),
    [("llama", {}, None), ("llama", {"on_full": "stop"}, 32), ("gpt2", {}, 512), ("llama", {"policy": "full"}, 32)],
    ids=str,
)
def test_where_a_conversation_ends_the_row_cannot_be_put_beyond(
    family: str, options: dict[str, str], end: int | None
) -> None:
    engine = make_engine(admitted(tiny_model(family, SUPPORTED[family])), "32tok", **options)
    assert longest_conversation(engine) == end
    answers(engine, [Request("prompt", PROMPT, max_tokens=1, row=0)])
    if end is not None:
        fast_forward(engine, 0, engine.rows.snapshot(0), end)
        assert engine.rows.counts(0).tokens_seen == end
        with pytest.raises(ContextFull, match=f"ends here after {end} tokens"):
            fast_forward(engine, 0, engine.rows.snapshot(0), end + 1)
