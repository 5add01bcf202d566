"""Decoding at several contexts, prompts of several lengths, and batches in equal bytes: what the peers answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvlite.memory.budget import Budget
from kvlite.memory.rows import plan_rows
from kvlite.speed.ceilings import Ceilings
from parts.rounds import Run, Timings, in_turns, prompts_of
from peers.ours import Kvlite
from peers.peer import Case, Peer, Took

Rows = list[dict[str, Any]]


def decode(
    peers: Mapping[str, Peer],
    cases: Sequence[Case],
    *,
    vocab: int,
    tokens: int,
    rounds: int,
    ceilings: Ceilings,
    run: Run,
) -> Rows:
    """One row at a time: tokens per second after the first, and the share of the device's copy bandwidth."""
    rows: Rows = []
    for case in cases:
        prompts = prompts_of(1, case.context, vocab)
        what = f"decode {case.context}:{case.slots}"
        found = in_turns(peers, lambda peer, case=case, prompts=prompts: peer.answer(prompts, tokens, case),  # type: ignore[misc]
                         rounds=rounds, run=run, what=what)  # fmt: skip
        reference = found.get("dynamic")
        for name, timings in found.items():
            read = peers[name].read_bytes(case)
            step_s = timings.median(lambda took: took.step_s)
            rows.append({
                "peer": name, "context": case.context, "slots": case.slots, "tokens_s": 1 / step_s, "step_s": step_s,
                "step_between_s": timings.spread(lambda took: took.step_s), "rounds": len(timings.rounds),
                "read_bytes": read, "share_of_copy": None if read is None else read / step_s / ceilings.copy_bytes_s,
                "peak_bytes": timings.peak_bytes,
                "same_as_dynamic": None if reference is None else _common(timings.rounds[0], reference.rounds[0]),
            })  # fmt: skip
    return rows


def prefill(
    peers: Mapping[str, Peer],
    cases: Sequence[Case],
    *,
    vocab: int,
    rounds: int,
    run: Run,
) -> Rows:
    """Prompts to their first token: tokens per second and peak bytes."""
    rows: Rows = []
    for case in cases:
        prompts = prompts_of(1, case.context, vocab)
        found = in_turns(peers, lambda peer, case=case, prompts=prompts: peer.answer(prompts, 1, case),  # type: ignore[misc]
                         rounds=rounds, run=run, what=f"prefill {case.context}")  # fmt: skip
        for name, timings in found.items():
            first_s = timings.median(_first)
            rows.append({
                "peer": name, "context": case.context, "slots": case.slots, "tokens_s": case.context / first_s,
                "first_token_s": first_s, "first_between_s": timings.spread(_first), "rounds": len(timings.rounds),
                "processor_s": timings.median(lambda took: took.processor_s), "kv_bytes": timings.rounds[0].kv_bytes,
                "peak_bytes": timings.peak_bytes,
            })  # fmt: skip
    return rows


def batch(
    ours: Kvlite,
    theirs: Peer,
    case: Case,
    new_tokens: int,
    full_rows: int,
    *,
    rounds: int,
    run: Run,
) -> Rows:
    """As many rows as the bytes of `full_rows` whole conversations hold, in bounded slots and in a full cache.

    Each engine answers one wave of as many rows as its bytes hold; tokens per second count the answers alone.
    """
    shape = ours.loaded.shape
    budget = shape.kv_bytes_per_token() * (case.context + new_tokens) * full_rows
    plan = plan_rows(shape, Budget.parse(f"{budget}B"), Budget.parse(f"{case.slots}tok"), ours.spec(),
                     most_rows=2**16, free_bytes=None)  # fmt: skip
    rows: Rows = []
    for peer, count in ((ours, plan.rows), (theirs, full_rows)):
        prompts = prompts_of(count, case.context, shape.vocab)
        found = in_turns(
            {peer.name: peer},
            lambda peer, prompts=prompts: peer.answer(prompts, new_tokens, case),  # type: ignore[misc]
            rounds=rounds,
            run=run,
            what=f"batch {case.context}+{new_tokens}",
        )
        rows += [_wave(name, case, new_tokens, budget, timings) for name, timings in found.items()]
    return rows


def _wave(name: str, case: Case, new_tokens: int, budget: int, timings: Timings) -> dict[str, Any]:
    total_s, count = timings.median(lambda took: took.total_s), len(timings.rounds[0].ids)
    return {
        "peer": name,
        "context": case.context,
        "new_tokens": new_tokens,
        "slots": case.slots,
        "kv_budget_bytes": budget,
        "rows": count,
        "total_s": total_s,
        "tokens_s": count * new_tokens / total_s,
        "rounds": len(timings.rounds),
        "peak_bytes": timings.peak_bytes,
    }


def _common(took: Took, reference: Took) -> int:
    """How many tokens of an answer are the reference's before the first that is not."""
    pairs = enumerate(zip(took.ids[0], reference.ids[0], strict=True))
    return next((index for index, (ours, theirs) in pairs if ours != theirs), took.tokens)


def _first(took: Took) -> float:
    return took.first_s
