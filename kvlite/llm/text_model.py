"""A model that reads and writes text: its weights and its tokenizer, loaded, and the engines made of it."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kvlite.console import Console
from kvlite.errors import BudgetTooSmall
from kvlite.llm.generation import not_applied
from kvlite.llm.spec import BatchSize, PlanDevice, RunSpec
from kvlite.memory.fit import LONGEST
from kvlite.memory.prediction import weights_held_in

if TYPE_CHECKING:
    import torch

    from kvlite.cache.policy import Policy
    from kvlite.catalog.model_files import ModelFiles
    from kvlite.engine.engine import Engine
    from kvlite.memory.budget import Budget
    from kvlite.memory.fit import Fit
    from kvlite.memory.format import SlotFormat
    from kvlite.memory.plan import CachePlan, CacheSpec
    from kvlite.models.kernel_trial import KernelTrials
    from kvlite.models.kv_quant_check import QuantEffect
    from kvlite.models.loaded import LoadedModel
    from kvlite.profiles.profile import HeadProfile
    from kvlite.record.findings import Circumstances
    from kvlite.record.schema import ModelIdentity
    from kvlite.record.trials import Trial
    from kvlite.record.verdicts import Verdict, Verdicts
    from kvlite.text.template import ChatText


class Told:
    """Passes notes and warnings to `say`, to nobody where that is None: what a Console is for the commands."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or (lambda text: None)

    def note(self, text: str) -> None:
        """Pass on a note."""
        self._say(text)

    def detail(self, text: str) -> None:
        """Drop a detail."""

    def warn(self, text: str) -> None:
        """Pass on a warning, marked as one."""
        self._say(f"warning: {text}")


@dataclass(frozen=True, slots=True)
class TextModel:
    """The loaded weights and the way between text and ids.

    `captures`: the device runs CUDA graphs for it; `trials` are those of kernels, None where no choice is left open;
    `listener` is told what happens to it. `effects` remembers what slot formats did to it, `profiles` the profile of
    its heads once one was looked for.
    """

    spec: RunSpec
    files: ModelFiles
    loaded: LoadedModel
    text: ChatText
    captures: bool
    listener: Console | Told
    effects: dict[str, QuantEffect] = field(default_factory=dict)
    profiles: list[HeadProfile | None] = field(default_factory=list)
    trials: KernelTrials | None = None

    @property
    def parameters(self) -> int:
        """The number of weights, a shared one counted once."""
        return (self.files.weights and self.files.weights.parameters) or self.loaded.model.num_parameters()

    @classmethod
    def load(
        cls,
        spec: RunSpec,
        listener: Console | Told,
        files: ModelFiles | None = None,
        verdicts: Verdicts | None = None,
    ) -> TextModel:
        """Load the weights of `files`, or of those found for `spec`, downloaded where they are not here yet.

        What fails fastest comes first: device, then files, then memory, then weights. Raises the KvliteError that says
        what is wrong.
        """
        from kvlite.engine.decode_graphs import wants_graphs
        from kvlite.models.device import pick_device
        from kvlite.models.loading import load
        from kvlite.record.verdicts import Verdicts
        from kvlite.text.template import ChatText

        device = pick_device(spec.options.device, listener.note)
        captures = wants_graphs(spec.options.capture, device)
        files = files or spec.files(listener.note)
        spec.shape(files)
        files = replace(files, weights=spec.weights(files))
        if spec.options.adapter is None and files.gguf is None and (files.folder / "adapter_config.json").is_file():
            listener.note(f"{files.ref} holds an adapter, too, which is not applied; --adapter {files.ref} applies it")
        if files.ref.system is not None:
            listener.note(f"{files.ref} has a system prompt of its own: that is --system @{files.ref.system}")
        verdicts = verdicts or Verdicts()
        trials = _trials(spec, files, device, captures, listener, again=verdicts.again)
        short = spec.is_for_short_texts(files.shape(spec.dtype))
        loaded = load(files, spec.options, device, verdicts, trials, is_for_short_texts=short)
        if told := loaded.shape.factors:
            listener.note(f"{files.ref} {told}")
        if loaded.remembered:
            listener.detail(f"gate and patches: as found {loaded.remembered}; `kvlite doctor MODEL --again` looks anew")
        for patch in loaded.refused:
            listener.detail(f"not fused: {patch}")
        text = ChatText(loaded.tokenizer, generation=files.generation, think=spec.options.think, tell=listener.note)
        if asked := not_applied(files.generation, loaded.window):
            listener.note(f"generation_config.json asks for {', '.join(asked)}, which kvlite does not apply")
        return cls(spec, files, loaded, text, captures, listener, trials=trials)

    @property
    def generation(self) -> Mapping[str, Any]:
        """The model's generation_config.json."""
        return self.files.generation

    @property
    def name(self) -> str:
        """`repo@sha`, or the folder's or alias's name."""
        return self.files.name

    @property
    def held_in(self) -> str:
        """The form that most of the weights are held in: `bfloat16`, `4bit`, `Q4_K with Q6_K`."""
        loaded = self.loaded
        return weights_held_in(
            self.files.weights, loaded.shape.dtype, loaded.quant, loaded.device.type, self.spec.options.kernels
        )

    def identity(self) -> ModelIdentity:
        """The weights, for the run record."""
        from kvlite.record.schema import ModelIdentity

        return ModelIdentity(
            alias=self.files.ref.alias,
            repo=self.files.repo or str(self.files.folder),
            revision=self.files.revision,
            params=self.parameters,
            quant="none" if self.held_in == self.loaded.shape.dtype else self.held_in,
            dtype=self.loaded.shape.dtype,
            license=self.files.license,
            fused=list(self.loaded.fused),
            refused=list(self.loaded.refused),
        )

    def allocate(self, batch_size: BatchSize | None, slots: int | None = None, lines: int = 1) -> Allocated:
        """Build the engine for one conversation with the whole budget (None), or for a batch whose rows share it.

        Those of a batch fit `lines` of at most `slots` tokens where that is known. Raises CapacityError where the
        budget or the device's memory is too small, SlotsTooCoarse where the model does not tolerate the slot format
        that was named.
        """
        fit, budget = self.fit(batch_size), self.spec.budget
        plan = fit.cache(budget) if slots is None else fit.rows(budget, slots, lines)
        return Allocated(self.engine(fit, plan), fit, batch_size)

    def fit(self, batch_size: BatchSize | None, sharers: int = 1) -> Fit:
        """The model on its device, with its part of the memory that is free now and that `sharers` processes want.

        Raises as `allocate` does.
        """
        from kvlite.models.device import free_bytes

        spec, loaded, device = self.spec, self.loaded, self.loaded.device
        self.kernels()  # a process that tries them takes memory
        place = PlanDevice("cuda" if device.type == "cuda" else "cpu", str(device), free_bytes(device) // sharers)
        profile = self.profile(spec.fit(self.files, place, batch_size, loaded=loaded.shape))
        if batch_size is None and spec.row_budget is not None:  # a batch may follow: say now that it does not fit
            rows = spec.fit(self.files, place, "auto", loaded=loaded.shape, profile=profile)
            replace(rows, spec=rows.specs(spec.budget)[0]).cache(spec.budget)
        fit = spec.fit(self.files, place, batch_size, loaded=loaded.shape, profile=profile)
        return replace(fit, spec=self._tolerated(fit.specs(spec.budget)))

    def engine(self, fit: Fit, plan: CachePlan) -> Engine:
        """Build an engine with such a cache. Raises CapacityError where the device's memory is too small."""
        from kvlite.engine.decode_graphs import CudaGraphs
        from kvlite.engine.engine import Engine
        from kvlite.engine.kernels import TriedKernels

        spec = self.spec
        return Engine(
            self.loaded,
            plan,
            spec.policy,
            fit.spec.slot_format,
            spec.on_full,
            spec.options.kernels
            if self.trials is None
            else TriedKernels(self.loaded, self.trials, self.listener.detail),
            recorder=CudaGraphs(self.loaded.device) if self.captures else None,
            must_capture=bool(spec.options.capture),
            warn=self.listener.warn,
            speculate=spec.speculate,
        )

    def profile(self, fit: Fit) -> HeadProfile | None:
        """The profile that the heads' slots follow; None where nothing is evicted."""
        if self.spec.options.profile == "off":
            return None
        budget = self.spec.budget
        *smaller, largest = (replace(fit, spec=spec) for spec in fit.specs(budget))
        try:
            plan = largest.cache(budget) if fit.batch is None else largest.rows(budget, LONGEST, 1)
        except BudgetTooSmall:
            if not smaller:
                raise
            return self.head_profile() if largest.spec.evicts else None  # less than the smallest is not the window
        return self.head_profile() if largest.spec.evicts and plan.slots < plan.most_slots else None

    def head_profile(self) -> HeadProfile | None:
        """The profile for a cache that evicts; None where all heads get as many slots, which is said once."""
        from kvlite.llm.head_profile import profile_for

        if not self.profiles:
            self.profiles.append(profile_for(self))
        return self.profiles[0]

    def slot_format(self, policy: Policy, budget: Budget) -> SlotFormat:
        """The slots that one conversation gets under `policy` where nobody names a format."""
        place = PlanDevice("cpu", "", 0)  # a budget of bytes or tokens is as large everywhere
        spec = replace(self.spec, policy=policy, stored=None)
        return self._tolerated(spec.fit(self.files, place, loaded=self.loaded.shape).specs(budget)).slot_format

    def _tolerated(self, specs: Sequence[CacheSpec]) -> CacheSpec:
        """The first of `specs` that the model tolerates: without harm where there is another to take instead."""
        is_named = len(specs) == 1
        for spec in specs:
            stored = spec.slot_format
            if not stored.is_quantised:
                return spec
            if not is_named and (why := self._slowness(stored)) is not None:
                self.listener.note(f"--kv-dtype auto passes over {stored.name}, fewer tokens are kept: {why}")
                continue
            if stored.name not in self.effects:
                self._tell(self.effect_of(stored, is_named=is_named), is_named)
            if is_named or self.effects[stored.name].is_harmless:
                return spec
        raise AssertionError("the last format is the model's own dtype")

    def _slowness(self, stored: SlotFormat) -> str | None:
        """The reason that coded slots are slow on a GPU, where torch has several times the launches; None: not."""
        from kvlite.engine.kernels import part_of

        if self.trials is not None:
            found = self.trials.finding(part_of(stored, self.spec.policy))
            return None if found.is_taken else f"Triton's kernels on them are not taken ({found})"
        is_torch = self.loaded.device.type == "cuda" and self.spec.options.kernels == "torch"
        return "they are slow in torch" if is_torch else None

    def verdict(self) -> tuple[Circumstances, Verdict]:
        """All that is known of the model by now, and under which circumstances it holds: few where none is kept."""
        from kvlite.models.checks import verdict_of

        loaded = self.loaded
        few = {"model": self.files.name, "dtype": str(loaded.dtype).removeprefix("torch."), "quant": loaded.quant}
        return loaded.about or few, verdict_of(loaded, self.effects)

    def kernels(self) -> list[tuple[str, Trial]]:
        """The kernels that are tried for this model, and what came of it."""
        return [] if self.trials is None else self.trials.outcomes()

    def effect_of(self, stored: SlotFormat, *, is_named: bool = False) -> QuantEffect:
        """The effect of `stored` on the model's answers, tried out unless an earlier start did."""
        from kvlite.models.kv_quant_check import QuantEffect, try_format
        from kvlite.record.verdicts import Verdicts

        if (known := self.loaded.effects.get(stored.name)) is not None:
            effect = QuantEffect(stored, *known)
            effect.require_tolerable(is_named=is_named)
        else:
            effect = try_format(self.loaded, stored, is_named=is_named)
            if self.loaded.about is not None:
                Verdicts().add_effect(self.loaded.about, stored.name, effect.nats, effect.agreement)
        self.effects[stored.name] = effect
        return effect

    def _tell(self, effect: QuantEffect, is_named: bool) -> None:
        listener, name = self.listener, effect.stored.name
        if is_named:
            (listener.warn if effect.is_noticeable else listener.detail)(str(effect))
        elif effect.is_harmless:
            listener.detail(f"--kv-dtype auto takes {name}: {effect.finding}")
        else:
            listener.detail(f"--kv-dtype auto passes over {name}, fewer tokens are kept: {effect.finding}")


@dataclass(frozen=True, slots=True)
class Allocated:
    """An engine with its cache, and how they fit beside the weights; `batch_size` is what they were made for."""

    engine: Engine
    fit: Fit
    batch_size: BatchSize | None

    def predicted(self) -> dict[str, int]:
        """Bytes by term, as `kvlite plan` predicts them."""
        return self.fit.memory(self.engine.plan).predicted()


def _trials(
    spec: RunSpec, files: ModelFiles, device: torch.device, captures: bool, listener: Console | Told, *, again: bool
) -> KernelTrials | None:
    """The trials of kernels, under way for the slots that are likeliest; None where no choice is left open."""
    from kvlite.engine.kernels import part_of
    from kvlite.models.device import free_bytes
    from kvlite.models.kernel_trial import KernelTrials, may_try
    from kvlite.models.loading import shape_on
    from kvlite.record.trials import Trials
    from kvlite_kernels.trial.task import MODULES, Part

    if not may_try(spec.options.kernels, device):
        return None
    cache = spec.fit(files, PlanDevice("cuda", str(device), free_bytes(device))).specs(spec.budget)[0]
    likely: list[Part] = [MODULES] if spec.options.fuse else []  # waited for first
    likely.append(part_of(cache.slot_format, spec.policy))
    shape, store = shape_on(files, spec.dtype, device), Trials(again=again)
    trials = KernelTrials(shape, device, store, listener.note, captures, likely)
    atexit.register(trials.close)  # what is still being tried then is known to nobody
    return trials


def import_engine() -> None:
    """Import the engine and the loader, without the garbage collector looking through all that this makes.

    It would find nothing to free, and takes about a second. For commands, which own their process: `import kvlite`
    leaves the collector alone.
    """
    if "kvlite.models.loading" in sys.modules:
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        import kvlite.engine.engine
        import kvlite.models.loading  # noqa: F401
    finally:
        if collects:
            gc.enable()
    gc.freeze()  # later collections pass over these objects
    atexit.register(gc.unfreeze)  # where the interpreter is taken apart, bindings complain of what is left over
