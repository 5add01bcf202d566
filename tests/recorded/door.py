"""The one way from recorded cases to the product: ids in, greedy ids and counts out."""

from __future__ import annotations

from dataclasses import dataclass

from kvlite.cli.opening import open_model
from kvlite.console import Console
from kvlite.engine.request import Completion, Request, Sampling
from kvlite.options import ModelOptions


@dataclass(frozen=True, slots=True)
class Case:
    """Prompts under a policy, a slot format and a budget of one row: turns of one conversation, or rows `together`.

    `pins` are spans of the first prompt that are never evicted, `dtype` is what the model computes in. No id ends an
    answer: each has `max_tokens`.
    """

    policy: str
    slots: str
    budget: str
    prompts: list[list[int]]
    max_tokens: int
    together: bool = False
    pins: tuple[tuple[int, int], ...] = ()
    dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class Answer:
    """The greedy ids of one prompt, and what its row held afterwards, in the order of COUNTS."""

    ids: list[int]
    counts: list[int]


COUNTS = ("reserved_bytes", "live_bytes", "tokens_seen", "tokens_kept", "tokens_evicted")


def generate(model: str, case: Case) -> list[Answer]:
    """Answer the prompts of `case` with the model of this name or folder, on the CPU."""
    options = ModelOptions(
        model=model,
        device="cpu",
        dtype=case.dtype,
        kv_policy=case.policy,
        kv_dtype=case.slots,
        kv_budget="1GB" if case.together else case.budget,
        kv_per_seq=case.budget if case.together else None,
    )
    rows = len(case.prompts) if case.together else None
    engine = open_model(options, Console(quiet=True), with_rows=case.together, batch_size=rows).engine
    requests = [
        Request(
            str(index),
            tuple(ids),
            Sampling(seed=index),  # greedy; the seed says whose logits are drawn from
            max_tokens=case.max_tokens,
            row=None if case.together else 0,
            pins=() if index else case.pins,
        )
        for index, ids in enumerate(case.prompts)
    ]
    rounds = [requests] if case.together else [[request] for request in requests]
    ends = [event for waiting in rounds for event in engine.run(waiting) if isinstance(event, Completion)]
    for end in ends:
        if end.error is not None:
            raise end.error
    ends.sort(key=lambda end: int(end.request_id))
    return [Answer(list(end.ids), [getattr(end.kv, name) for name in COUNTS]) for end in ends]
