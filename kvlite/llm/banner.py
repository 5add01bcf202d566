"""The line that says what runs: model, cache, policy, device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvlite.memory.budget import BudgetKind
from kvlite.memory.format import human_bytes

if TYPE_CHECKING:
    from kvlite.llm.text_model import Allocated, TextModel
    from kvlite.memory.plan import CachePlan


def banner(model: TextModel, held: Allocated) -> str:
    """The model, what its weights are held in, its cache, the policy and the device, in one line."""
    engine, plan = held.engine, held.engine.plan
    loaded, cache, alias = model.loaded, engine.cache, model.files.ref.alias
    token_bytes = human_bytes(loaded.shape.kv_bytes_per_token(cache.stored))
    state = " + policy state" if plan.policy_state_bytes else ""
    window = loaded.shape.max_positions
    # the window is why the cache is smaller than the budget
    is_capped = plan.capped_by == "window" or model.spec.budget.kind is BudgetKind.FULL
    less = ", less room for new ones" if window and is_capped and plan.slots < window else ""
    by_head = ", slots by need" if held.fit.spec.head_shares is not None else ""
    steps = "" if engine.step == "eager" else f", {engine.step.partition(':')[0]} steps"
    verified = f", {engine.kernels.told}" if cache.backend.name == "triton" and engine.kernels.told else ""
    parts = [
        model.name if alias in (None, model.name) else f"{alias} → {model.name}",
        model.held_in,
        f"{cache_size(plan)} @ {token_bytes}{cache.stored.label}{state}"
        + (f" (window {window:,} tok{less})" if window else ""),
        f"policy {cache.policy}{by_head}"
        + ("" if engine.rows.on_full == "evict" else f", {engine.rows.on_full} when full"),
        f"{loaded.device} ({cache.backend.name}{verified}{steps})",
    ]
    if loaded.rotations is None and loaded.window is not None:
        parts.append(f"ends at {loaded.window:,} tok: positions cannot move")
    return " · ".join(parts)


def welcome(model: TextModel, held: Allocated) -> str:
    """The model and what it remembers, in words and one line of a narrow terminal."""
    plan, alias = held.engine.plan, model.files.ref.alias
    name = alias or model.files.repo or model.files.folder.name
    first = min((part.num_slots for part in held.engine.cache.parts if part.shape.window is None), default=plan.slots)
    forgets = f", forgets from {first:,} on" if first < plan.slots and held.engine.rows.on_full == "evict" else ""
    return f"{name} · keeps {plan.slots:,} tokens in {human_bytes(plan.reserved_bytes)}{forgets} · /help"


def cache_size(plan: CachePlan) -> str:
    """Reserved bytes of the budget, and the tokens they hold: `KV 395 kB of 400 kB = 4 × 64 tok`."""
    reserved, budget = human_bytes(plan.reserved_bytes), human_bytes(plan.budget_bytes)
    rows = f"{plan.rows} × " if plan.rows > 1 else ""
    return f"KV {reserved}{'' if reserved == budget else f' of {budget}'} = {rows}{plan.slots:,} tok"
