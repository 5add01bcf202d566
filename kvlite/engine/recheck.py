"""An answer drawn again with the full cache behind it: the same ids are fed, and at each the next one is drawn."""

from __future__ import annotations

from collections.abc import Sequence

from kvlite.cache.policies import Full
from kvlite.engine.engine import Engine
from kvlite.engine.request import Request
from kvlite.engine.sampling import Draw, sample
from kvlite.errors import DoesNotFit
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.format import human_bytes, slot_format
from kvlite.memory.plan import AUTO_SHARE, plan_cache
from kvlite.models.device import free_bytes

CHUNK = 256  # tokens fed at once; logits of so many lie in memory


def full_engine(engine: Engine, tokens: int) -> Engine:
    """An engine of the same weights with a cache for all `tokens`, in the model's own dtype.

    Raises DoesNotFit where it takes more than nine tenths of what is free.
    """
    loaded, policy = engine.loaded, Full()
    stored = slot_format("auto", loaded.shape.dtype)
    plan = plan_cache(
        loaded.shape, Budget(BudgetKind.TOKENS, tokens), policy.cache_spec(stored, chunk_limit=CHUNK), free_bytes=None
    )
    free = int(free_bytes(loaded.device) * AUTO_SHARE)
    if plan.reserved_bytes > free:
        raise DoesNotFit(
            f"a full cache of {tokens:,} tokens takes {human_bytes(plan.reserved_bytes)}, and {human_bytes(free)} are "
            "free for it"
        )
    return Engine(loaded, plan, policy, stored, kernels="auto")


def redrawn(engine: Engine, full: Engine, said: Sequence[int], count: int, request: Request) -> list[int]:
    """The ids drawn by `full` in place of the last `count` of `said`, the answer to `request`, each after those before.

    The constant state of hybrids is put back afterwards.
    """
    state = engine.loaded.state
    held = None if state is None else state.snapshot()
    try:
        if state is not None:
            state.reset()
        return _redrawn(full, said, count, request)
    finally:
        if state is not None and held is not None:
            state.restore(held)


def _redrawn(full: Engine, said: Sequence[int], count: int, request: Request) -> list[int]:
    first = len(said) - count  # the id of the answer that is drawn after all before it
    for start in range(0, first - 1, CHUNK):
        full.score([tuple(said[start : min(start + CHUNK, first - 1)])], last=1)
    drawn: list[int] = []
    used = set(said[:first])
    for start in range(first - 1, len(said) - 1, CHUNK):
        piece = tuple(said[start : min(start + CHUNK, len(said) - 1)])
        for logits in full.score([piece])[0]:
            at = first + len(drawn)
            before = list(said[:at])
            draw = Draw(
                request.sampling, len(drawn), used, request.rules, before, request.stop_ids, answer=before[first:]
            )
            drawn += sample(logits[None], [draw])
            used.add(said[at])
    return drawn
