"""The model of a batch: chosen by the -m flag, by what the lines name, or by default; opened or only planned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvlite.cli.invocation import UNNAMED, Invocation
from kvlite.cli.loading import find_files, weights_identity
from kvlite.cli.opening import open_model
from kvlite.cli.plan import find_device
from kvlite.cli.room import fit_of

if TYPE_CHECKING:
    from kvlite.batch.job import Model, Planned
    from kvlite.cli.opening import Opened
    from kvlite.console import Console
    from kvlite.options import ModelOptions

_PARAMS = (
    "kv_budget",
    "kv_per_seq",
    "kv_policy",
    "kv_dtype",
    "on_full",
    "prefill_chunk",
    "quant",
    "dtype",
    "think",
    "fuse",
    "kernels",
    "capture",
)


def choose_model(
    named: str | None, options: ModelOptions, batch_size: int | None, call: Invocation, from_lines: str | None
) -> Model:
    """The model that `named` (the flag) says, else the lines, else the user's default; nothing is loaded yet."""
    from kvlite.batch.job import Model
    from kvlite.batch.prepare import Terms
    from kvlite.cache.policy import load_policy
    from kvlite.memory.budget import Budget

    options = replace(options, model=call.chosen_model(from_lines if named is None else named))
    budgets = [budget for budget in (options.kv_budget, options.kv_per_seq) if budget]
    access = _Access(options, batch_size, call.console)
    is_unnamed = named is None and from_lines is None and not call.default_model
    return Model(
        terms=Terms(
            model=None if named is not None else options.model,
            kv_budgets=tuple(str(Budget.parse(budget)) for budget in budgets),
            kv_policy=options.kv_policy,
            on_full=load_policy(options.kv_policy).when_full(options.on_full),
        ),
        params={name: getattr(options, name) for name in _PARAMS},
        identity=access.identity,
        open=access.open,
        plan=access.plan,
        note=UNNAMED if is_unnamed else None,
    )


@dataclass(frozen=True, slots=True)
class _Access:
    """Ways to the chosen model."""

    options: ModelOptions
    batch_size: int | None
    console: Console

    def identity(self) -> str:
        """What a resumed batch must find again."""
        return weights_identity(*find_files(self.options, self.console))

    def open(self) -> Opened:
        from kvlite.cli.answering import cache_size

        opened = open_model(self.options, self.console, with_rows=True, batch_size=self.batch_size)
        plan = opened.plan
        cache = f"{cache_size(plan)}{opened.engine.cache.stored.said}"
        self.console.note(f"{opened.name} · {cache} · policy {self.options.kv_policy} · {opened.loaded.device}")
        is_divisible = plan.slots > opened.engine.policy.min_slots() and not opened.loaded.shape.has_state
        if plan.rows < (self.batch_size or 2) and is_divisible:
            held = "one sequence" if plan.rows == 1 else f"{plan.rows} sequences"
            self.console.note(
                f"the budget holds {held} of {plan.slots:,} tok at a time; a smaller --kv-per-seq lets more run at once"
            )
        return opened

    def plan(self) -> Planned:
        """The tokenizer, and the cache of a run on this machine; the weights are only measured."""
        from kvlite.batch.job import Planned
        from kvlite.memory.budget import Budget
        from kvlite.memory.format import dtype_name
        from kvlite.memory.prediction import WeightFacts
        from kvlite.memory.shape import ModelShape
        from kvlite.models.loading import load_tokenizer
        from kvlite.text.template import ChatText

        options = self.options
        _, files = find_files(options, self.console)
        tokenizer = load_tokenizer(files.folder, trust_remote_code=options.trust_remote_code)
        text = ChatText(tokenizer, generation=files.generation, think=options.think)
        shape = ModelShape.from_config(files.config, dtype=dtype_name(options.dtype), stored_dtype=files.stored_dtype)
        device = find_device(options.device)
        fit = fit_of(
            options,
            shape,
            device.free_bytes,
            device.kind,
            weights=WeightFacts.of(files),
            is_loaded=False,
            with_rows=True,
            batch_size=self.batch_size,
        )
        budget = Budget.parse(options.kv_budget)
        spec = fit.specs(budget)[0]
        is_provisional = spec.slot_format.is_coded and options.kv_dtype == "auto"
        return Planned(self.identity(), text, replace(fit, spec=spec).cache(budget), spec.slot_format, is_provisional)
