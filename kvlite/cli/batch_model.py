"""The model of a batch: chosen by the -m flag, by what the lines name, or by default; opened or only planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from kvlite.cli.options import BUILT_IN_MODEL, console, default_model, model_options

if TYPE_CHECKING:
    from kvlite.batch.job import Model, Opened, Planned
    from kvlite.catalog.files import ModelFiles
    from kvlite.cli.opening import ModelOptions
    from kvlite.engine.engine import Engine
    from kvlite.memory.plan import CachePlan
    from kvlite.memory.recorder import RunRecorder

_PARAMS = ("kv_budget", "kv_per_seq", "kv_policy", "kv_dtype", "on_full", "prefill_chunk", "quant", "dtype", "think")


def choose_model(
    named: str | None, flags: Mapping[str, Any], batch_size: int | None, budget_source: str, from_lines: str | None
) -> Model:
    """The model that `named` (the flag) says, else the lines, else the user's default; nothing is loaded yet."""
    from kvlite.batch.job import Model
    from kvlite.batch.prepare import Terms
    from kvlite.memory.budget import Budget

    options = model_options(model=from_lines if named is None else named, **flags)
    budgets = [budget for budget in (options.kv_budget, options.kv_per_seq) if budget]
    access = _Access(options, batch_size, budget_source)
    is_unnamed = named is None and from_lines is None and not default_model()
    return Model(
        terms=Terms(
            model=None if named is not None else options.model,
            kv_budgets=tuple(str(Budget.parse(budget)) for budget in budgets),
            kv_policy=options.kv_policy,
            on_full=options.on_full,
        ),
        params={name: getattr(options, name) for name in _PARAMS},
        identity=access.identity,
        open=access.open,
        plan=access.plan,
        note=f"no model is named: the built-in one, {BUILT_IN_MODEL}, answers; see -m" if is_unnamed else None,
    )


@dataclass(frozen=True, slots=True)
class _Access:
    """Ways to the chosen model."""

    options: ModelOptions
    batch_size: int | None
    budget_source: str

    def identity(self) -> str:
        files = self._files()
        return f"{files.repo}@{files.revision}" if files.repo else str(files.folder)

    def open(self, recorder: RunRecorder | None) -> Opened:
        from kvlite.batch.job import Opened
        from kvlite.batch.recording import record_cache
        from kvlite.cli.answering import _identity, _predicted
        from kvlite.cli.opening import open_model
        from kvlite.memory.format import human_bytes

        opened = open_model(self.options, console(), batch_size=self.batch_size, with_rows=True)
        plan = opened.plan
        console().note(
            f"{opened.name} · KV {human_bytes(plan.reserved_bytes)} of {human_bytes(plan.budget_bytes)} = "
            f"{plan.rows} × {plan.slots:,} tok · policy {self.options.kv_policy} · {opened.loaded.device}"
        )
        if recorder is not None:
            recorder.model(_identity(opened))
            recorder.host(device=opened.loaded.device.type, kernels="torch")
            recorder.plan(_predicted(opened))
            record_cache(recorder, opened.engine, self.budget_source)
        return Opened(opened.name, opened.engine, opened.text, opened.sampling, partial(_measure, opened.engine))

    def plan(self) -> Planned:
        """The tokenizer, and the cache of a run on this machine; the weights are only measured."""
        from kvlite.batch.job import Planned
        from kvlite.models.loading import LoadOptions, _tokenizer
        from kvlite.text.template import ChatText

        files, options = self._files(), self.options
        tokenizer = _tokenizer(files.folder, LoadOptions(trust_remote_code=options.trust_remote_code))
        text = ChatText(tokenizer, generation=files.generation, think=options.think)
        return Planned(self.identity(), text, self._cache(files))

    def _cache(self, files: ModelFiles) -> CachePlan:
        from kvlite.cache.policy import load_policy
        from kvlite.cli.opening import ROWS_ON_CPU, ROWS_ON_GPU
        from kvlite.memory.budget import Budget
        from kvlite.memory.format import slot_format
        from kvlite.memory.host import available_bytes
        from kvlite.memory.measure import device_reading
        from kvlite.memory.rows import plan_rows
        from kvlite.memory.shape import ModelShape

        options = self.options
        gpu = device_reading() if options.device.partition(":")[0] in ("auto", "cuda") else None
        free_bytes = gpu.free_bytes if gpu else available_bytes()
        shape = ModelShape.from_config(files.config, dtype=files.unnamed_dtype)
        policy = load_policy(options.kv_policy)
        return plan_rows(
            shape,
            Budget.parse(options.kv_budget),
            Budget.parse(options.kv_per_seq) if options.kv_per_seq else None,
            most_rows=1 if shape.has_state else self.batch_size or (ROWS_ON_GPU if gpu else ROWS_ON_CPU),
            slot_format=slot_format(options.kv_dtype, shape.dtype if options.dtype == "auto" else options.dtype),
            state_bytes_per_slot=policy.state_bytes_per_slot,
            free_bytes=None if free_bytes is None else max(0, free_bytes - (files.weight_bytes or 0)),
            protected_slots=policy.min_slots(),
            evicts=policy.evicts and options.on_full == "evict",
            chunk_limit=options.prefill_chunk,
        )

    def _files(self) -> ModelFiles:
        from kvlite.catalog.files import local_files
        from kvlite.catalog.names import resolve_model

        ref = resolve_model(self.options.model, revision=self.options.revision)
        say = console().note
        return local_files(ref, offline=self.options.offline, allow_pickle=self.options.allow_pickle, say=say)


def _measure(engine: Engine, recorder: RunRecorder) -> None:
    """Tell the record what the weights and the cache take, by the tensors there are, and the device by its own word."""
    from kvlite.chat.recording import measured_terms
    from kvlite.memory.measure import device_reading
    from kvlite.memory.report import TorchMemory

    peaks, device = None, engine.loaded.device
    if device.type == "cuda":
        import torch

        peaks = TorchMemory(
            allocated_peak_bytes=torch.cuda.max_memory_allocated(device),
            reserved_peak_bytes=torch.cuda.max_memory_reserved(device),
        )
    recorder.measured(measured_terms(engine), torch=peaks, device=device_reading() if peaks else None)
    for name, peak_bytes in engine.meter.peaks.items():
        recorder.phase(name, peak_bytes)
