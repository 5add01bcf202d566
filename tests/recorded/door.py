"""The one way from recorded cases to the product: ids in, greedy ids and counts out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from kvlite import LLM
from kvlite.engine.request import Completion, Request, Sampling
from kvlite.llm.spec import RunSpec
from kvlite.llm.text_model import TextModel, Told
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
    weights = replace(_load(model, case.dtype), spec=RunSpec.of(options))
    llm = LLM(weights, batch_size=len(case.prompts) if case.together else None)
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
    ends = [event for waiting in rounds for event in llm.engine.run(waiting) if isinstance(event, Completion)]
    llm.close()
    for end in ends:
        if end.error is not None:
            raise end.error
    ends.sort(key=lambda end: int(end.request_id))
    return [Answer(list(end.ids), [getattr(end.kv, name) for name in COUNTS]) for end in ends]


@lru_cache(maxsize=1)
def _load(model: str, dtype: str) -> TextModel:
    """Load the weights once for all cases that follow each other."""
    return TextModel.load(RunSpec.of(ModelOptions(model=model, device="cpu", dtype=dtype)), Told())
