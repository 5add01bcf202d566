"""The task of a trial: what is tried, at which sizes. It travels to the process that tries as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from kvlite_kernels.backend import LayerSizes
from kvlite_kernels.kinds import Heads, Statistic

MODULES = "modules"
"""The part of a task that tries what fused modules compute."""

KEYS = 1025
"""Slots of a head in a trial, and the one in which a token waits: several tiles, and a rest."""


@dataclass(frozen=True, slots=True)
class SlotsPart:
    """Kernels on slots of `bits` (0: numbers of the model's dtype) that keep a statistic, None where none is kept."""

    bits: int
    statistic: Statistic | None
    heads: Heads = "mean"

    def __str__(self) -> str:
        kept = "" if self.statistic is None else f", {self.statistic.value} by {self.heads}"
        return f"slots of {f'{self.bits} bits' if self.bits else 'numbers'}{kept}"

    @classmethod
    def read(cls, told: dict[str, object]) -> SlotsPart:
        """The part that `told` describes, as `asdict` gives it in JSON."""
        kind = told["statistic"]
        return cls(told["bits"], None if kind is None else Statistic(kind), told["heads"])  # type: ignore[arg-type]


Part = SlotsPart | str
"""Kernels that are right or wrong together: those on slots, or MODULES."""


@dataclass(frozen=True, slots=True)
class Task:
    """Sizes of a model's attention (query heads, KV heads, channels of keys and values) and of its layers.

    `captures`: ways are timed as CUDA graphs. Kernels must give the same bits `repeats` times: a race moves bits.
    """

    device: str
    dtype: str
    heads: tuple[tuple[int, int, int, int], ...]
    hidden: int
    intermediate: int
    parts: tuple[Part, ...]
    captures: bool = False
    keys: int = KEYS
    repeats: int = 20

    @classmethod
    def read(cls, text: str) -> Task:
        """The task that JSON holds."""
        told = json.loads(text)
        parts = tuple(part if isinstance(part, str) else SlotsPart.read(part) for part in told.pop("parts"))
        return cls(**{**told, "heads": tuple(map(tuple, told["heads"]))}, parts=parts)

    def text(self) -> str:
        """The task as JSON."""
        parts = [
            part if isinstance(part, str) else {**asdict(part), "statistic": part.statistic and part.statistic.value}
            for part in self.parts
        ]
        return json.dumps({**asdict(self), "parts": parts})

    @property
    def place(self) -> torch.device:
        """The device that is tried on."""
        return torch.device(self.device)

    @property
    def number(self) -> torch.dtype:
        """The dtype of queries, and of slots that hold numbers."""
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    def layers(self) -> Iterator[LayerSizes]:
        """Every kind of layer, with the slots of a trial."""
        for query_heads, kv_heads, k_dim, v_dim in self.heads:
            yield LayerSizes(query_heads, kv_heads, self.keys, k_dim, v_dim)
