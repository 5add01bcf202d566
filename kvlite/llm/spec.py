"""Keywords become options, and options values: what loading, planning and the engine read. Loads no torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_origin, get_type_hints

from kvlite.cache.policy import Policy, load_policy
from kvlite.catalog.adapter import adapter_folder
from kvlite.catalog.files import local_files
from kvlite.catalog.model_files import ModelFiles
from kvlite.catalog.names import ModelRef, resolve_model
from kvlite.errors import UsageError
from kvlite.flags import Flag
from kvlite.memory.budget import Budget, BudgetKind
from kvlite.memory.fit import Fit, slots_held
from kvlite.memory.format import SlotFormat, dtype_name, parse_size, slot_format
from kvlite.memory.host import available_bytes
from kvlite.memory.plan import CacheSpec
from kvlite.memory.prediction import DeviceKind, Weights
from kvlite.memory.shape import ModelShape
from kvlite.options import ModelOptions, Speculate

if TYPE_CHECKING:
    from kvlite.profiles.profile import HeadProfile

ROWS_ON_CPU = 32
ROWS_ON_GPU = 256
"""Rows of a batch where the user names no number and the budget holds as many; more of them answer no faster."""

Options = TypeVar("Options")

BatchSize = int | Literal["auto"]
"""At most so many rows of a batch; `auto` leaves their number to the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """The options of one run, and as values those that are words.

    `dtype` None is the model's own; `stored` is what a slot holds, None where that follows from model and budget;
    `speculate` says how many tokens are drafted.
    """

    options: ModelOptions
    ref: ModelRef
    dtype: str | None
    budget: Budget
    row_budget: Budget | None
    policy: Policy
    on_full: str
    stored: SlotFormat | None
    speculate: Speculate

    @classmethod
    def of(cls, options: ModelOptions) -> RunSpec:
        """Read the options. Raises UsageError on a word that is none, ModelNotFound where the model's name is none."""
        policy = load_policy(options.kv_policy)
        if options.profile not in ("auto", "off"):
            from kvlite.profiles.profile import read_profile

            read_profile(Path(options.profile))  # the heads it is for are known later, if it comes to that
        return cls(
            options=options,
            dtype=dtype_name(options.dtype),
            budget=Budget.parse(options.kv_budget),
            row_budget=Budget.parse(options.kv_per_seq) if options.kv_per_seq is not None else None,
            stored=slot_format(options.kv_dtype, "float32") if options.kv_dtype != "auto" else None,
            policy=policy,
            on_full=policy.when_full(options.on_full),
            speculate=_speculate(options.speculate),
            ref=resolve_model(options.model, revision=options.revision),  # last: the words are checked before
        )

    def files(self, say: Callable[[str], None] | None = None) -> ModelFiles:
        """The model's files, downloaded where they are not here yet; `say` is told before a download.

        An adapter that is asked for is looked for first.
        """
        if self.options.adapter is not None:
            adapter_folder(self.options.adapter, offline=self.options.offline)
        return local_files(self.ref, offline=self.options.offline, allow_pickle=self.options.allow_pickle, say=say)

    def cache(self, shape: ModelShape, profile: HeadProfile | None = None) -> CacheSpec:
        """The cache that is asked for; in the model's dtype where the slot format is left open."""
        stored = self.stored or slot_format("auto", shape.dtype)
        return self.policy.cache_spec(stored, self.on_full, self.options.prefill_chunk, profile)

    def weights(self, facts: ModelFiles) -> Weights | None:
        """The weights as they are stored; where an adapter is merged into them nothing stays packed."""
        return facts.weights and (facts.weights if self.options.adapter is None else facts.weights.unpacked())

    def shape(self, facts: ModelFiles) -> ModelShape:
        """The model's shape, with the rotary factors for short texts where no row holds more than these are for."""
        shape = facts.shape(self.dtype)
        method = facts.config.get("quantization_config")
        if method is not None and self.options.quant != "none":
            raise UsageError(
                f"{facts.ref} is quantised already ({shape.quant_method}); leave out --quant {self.options.quant}"
            )
        return shape.for_short_texts() if self.is_for_short_texts(shape) else shape

    def is_for_short_texts(self, shape: ModelShape) -> bool:
        """True where the model has rotary factors for short texts and rows that hold no more than these are for.

        It follows from model and options alone, not from the memory that is free, and so holds for the whole of a run.
        """
        budget = self.row_budget or self.budget
        if shape.short_positions is None or budget.kind not in (BudgetKind.BYTES, BudgetKind.TOKENS):
            return False
        slots = slots_held(shape, self.cache(shape), budget, is_automatic=self.stored is None)
        return slots <= shape.short_positions

    def profile(self, facts: ModelFiles, shape: ModelShape) -> HeadProfile | None:
        """The profile of the heads that is asked for, as far as it is known before the weights are loaded.

        Raises UsageError where a file was named that holds none of such a model.
        """
        from kvlite.profiles.profile import read_profile
        from kvlite.profiles.store import Profiles

        word = self.options.profile
        if word == "off":
            return None
        if word != "auto":
            return read_profile(Path(word)).require(shape, word)
        found = Profiles().of_files(facts)
        return found if found is not None and found.fits(shape) else None

    def fit(
        self,
        facts: ModelFiles,
        device: PlanDevice,
        batch_size: BatchSize | None = None,
        *,
        loaded: ModelShape | None = None,
        profile: HeadProfile | None = None,
    ) -> Fit:
        """The model on a device, beside its weights where they are `loaded` in that shape, with its heads' `profile`.

        `batch_size` None is one conversation with the whole budget, else rows share it. Before the weights are loaded,
        the profile is the one that is known of the files.
        """
        shape = loaded or self.shape(facts)
        most = (ROWS_ON_GPU if device.kind == "cuda" else ROWS_ON_CPU) if batch_size == "auto" else batch_size
        return Fit(
            shape=shape,
            spec=self.cache(shape, profile if loaded else self.profile(facts, shape)),
            weights=self.weights(facts),
            quant=self.options.quant,
            device=device.kind,
            free_bytes=device.free_bytes,
            batch=most,
            row_budget=None if most is None else self.row_budget,
            is_automatic=self.stored is None,
            is_loaded=loaded is not None,
            kernels=self.options.kernels,
        )


def _speculate(word: str) -> Speculate:
    """The words `auto` and `off` as they are, a number as one."""
    if word == "off" or word == "auto":
        return word  # type: ignore[return-value]
    return int(word)


@dataclass(frozen=True, slots=True)
class PlanDevice:
    """The device's kind and name, and the bytes that are free there before weights are loaded."""

    kind: DeviceKind
    name: str
    free_bytes: int


def find_device(device: str, vram: str | None = None) -> PlanDevice:
    """The device called `device`, or a pretended GPU with `vram` free. Raises UsageError where it is not there."""
    from kvlite.record.measure import device_reading

    if vram is not None:
        size = parse_size(vram)
        if not size:
            raise UsageError(f"--vram {vram} is not a size; give for example 8GB or 8GiB")
        return PlanDevice("cuda", "a GPU", size)
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdecimal())):
        raise UsageError(f"unknown device '{device}'; give auto, cpu, cuda, cuda:N or mps")
    if kind in ("auto", "cuda"):
        gpu = device_reading(int(index or 0))
        if gpu is not None:
            return PlanDevice("cuda", gpu.name, gpu.usable_bytes)
        if kind == "cuda":
            raise UsageError(f"--device {device}: no such GPU answers here; give --vram SIZE to pretend one")
    return PlanDevice("cpu", "this machine", available_bytes())


def options_from(kind: type[Options], given: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> Options:
    """The options dataclass `kind` filled with `given`, which may name none of the fields `without`.

    A single text stands for several where a field takes several. Raises UsageError on a name that is no field's, with
    the nearest one, and on a value that the field does not take.
    """
    hints = get_type_hints(kind)
    flags = {field.name: field.metadata["flag"] for field in fields(kind) if field.name not in without}  # type: ignore[arg-type]
    for name in given:
        if name not in flags:
            close = difflib.get_close_matches(name, flags, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(flags)}"
            raise UsageError(f"there is no option {name!r}; {hint}")
    return kind(**{name: _value(name, value, hints[name], flags[name]) for name, value in given.items()})


def _value(name: str, value: Any, hint: Any, flag: Flag) -> Any:
    from pydantic import TypeAdapter, ValidationError  # commands need neither

    if get_origin(hint) is tuple and isinstance(value, (str, list)):
        value = (value,) if isinstance(value, str) else tuple(value)
    try:
        value = TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        raise UsageError(f"{name} is {value!r}; {error.errors()[0]['msg'].replace('Input', 'it', 1)}") from error
    if flag.min is not None and value is not None and value < flag.min:
        raise UsageError(f"{name} is {value}; give at least {flag.min}")
    try:
        return value if flag.parse is None or value is None else flag.parse(value)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error
