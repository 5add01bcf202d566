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
    """Kernels on keys of `k_bits` and values of `v_bits`, 0 where they are numbers of the model's dtype.

    They keep a statistic, None where none is kept; of queries that come once more where it is `heard`. Keys have a
    bias where it `has_bias`.
    """

    k_bits: int
    v_bits: int
    statistic: Statistic | None
    heads: Heads = "mean"
    is_heard: bool = False
    has_bias: bool = False

    def __str__(self) -> str:
        bits = f"{self.k_bits} bits" if self.k_bits == self.v_bits else f"{self.k_bits} and {self.v_bits} bits"
        kept = "" if self.statistic is None else f", {self.statistic.value} by {self.heads}"
        more = " heard again" * self.is_heard + " with a bias" * self.has_bias
        return f"slots of {bits if self.k_bits else 'numbers'}{kept}{more}"

    @classmethod
    def read(cls, told: dict[str, object]) -> SlotsPart:
        """The part that `told` describes, as `asdict` gives it in JSON."""
        kind = told["statistic"]
        return cls(**{**told, "statistic": None if kind is None else Statistic(kind)})  # type: ignore[arg-type]


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
