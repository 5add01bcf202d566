"""Which kernels run: a model's when it is loaded, a cache's when it is built, and said. Loads triton on demand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from kvlite_kernels import lowbit
from kvlite_kernels.dense import TORCH_DENSE, DenseKernels
from kvlite_kernels.lowbit import Packed
from kvlite_kernels.nf4 import Products
from kvlite_kernels.reference import Geometry, Segment, attend_segments
from kvlite_kernels.slots import SlotKernels
from kvlite_kernels.statistic import Measure

if TYPE_CHECKING:
    from kvlite_kernels.triton_set.tiles import Processor

KERNELS = ("auto", "torch", "triton")


class KernelsUnavailable(ValueError):
    """The kernels that were asked for do not run here; the message says why."""


class Attend(Protocol):
    """`reference.attend_segments`, or a kernel of the same signature."""

    def __call__(
        self, q: Tensor, q_pos: Tensor, segments: Sequence[Segment], geometry: Geometry, measure: Measure | None
    ) -> tuple[Tensor, list[Tensor]]: ...


class Quantise(Protocol):
    """`lowbit.quantise`, or a kernel of the same signature."""

    def __call__(self, x: Tensor, bits: int, group: int) -> Packed: ...


@dataclass(frozen=True, slots=True)
class KernelSet:
    """What runs: its name, how it attends and writes slots (None: torch does), its scratch in bytes, how it codes."""

    name: str
    attend: Attend
    slots: SlotKernels | None = None
    scratch_bytes: int = 0
    quantise: Quantise = lowbit.quantise


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """What one layer asks of kernels; `keys` are its slots and the one in which a token waits."""

    query_heads: int
    kv_heads: int
    keys: int
    k_dim: int
    v_dim: int


TORCH = KernelSet("torch", attend_segments)


def choose(
    wanted: str,
    layers: Sequence[LayerSizes],
    rows: int,
    dtypes: Sequence[torch.dtype],
    device: torch.device,
) -> KernelSet:
    """The kernels for `rows` rows of `layers` on `device`: `torch`, `triton`, or `auto`, which is what is known to run.

    `dtypes` are those of queries and of slots that hold numbers. Raises KernelsUnavailable where Triton is asked for
    and cannot serve.
    """
    if not _takes_triton(wanted):
        return TORCH
    obstacle = _obstacle(layers, dtypes, device)
    if obstacle is not None:
        raise KernelsUnavailable(obstacle)
    return _triton(layers, rows, device)


def choose_dense(wanted: str, device: torch.device) -> DenseKernels:
    """The kernels for what a model computes between its matrix products, by the same rule and with the same error."""
    if not _takes_triton(wanted):
        return TORCH_DENSE
    if (absence := _absence(device)) is not None:
        raise KernelsUnavailable(absence)

    from kvlite_kernels.triton_set.dense import TRITON_DENSE

    return TRITON_DENSE


def choose_products(wanted: str, device: torch.device) -> Products | None:
    """What multiplies few rows with 4-bit weights, by the same rule and with the same error; None is bitsandbytes."""
    if not _takes_triton(wanted):
        return None
    if (absence := _absence(device)) is not None:
        raise KernelsUnavailable(absence)

    from kvlite_kernels.triton_set.products import TritonProducts

    return TritonProducts(_processor(device))


def _takes_triton(wanted: str) -> bool:
    assert wanted in KERNELS, wanted
    return wanted == "triton"  # TODO: so is `auto` on CUDA once the kernels have passed their tests on a GPU


def _absence(device: torch.device) -> str | None:
    """Why no Triton kernel runs here, None where they do."""
    if find_spec("triton") is None:
        return "triton is not installed"
    interprets = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not (device.type == "cpu" and interprets):
        return f"Triton kernels need a CUDA device, and this is {device}"
    return None


def _obstacle(layers: Sequence[LayerSizes], dtypes: Sequence[torch.dtype], device: torch.device) -> str | None:
    """Why the Triton kernels cannot serve, None where they can."""
    if not layers:
        return "the model has no attention"
    if (absence := _absence(device)) is not None:
        return absence

    from kvlite_kernels.triton_set.tiles import supports

    capability = _capability(device)
    for layer in layers:
        for dtype in dtypes:
            group = layer.query_heads // layer.kv_heads
            if (lack := supports(capability, layer.k_dim, layer.v_dim, group, dtype)) is not None:
                return f"the Triton kernels do not take {lack}"
    return None


def _triton(layers: Sequence[LayerSizes], rows: int, device: torch.device) -> KernelSet:
    from kvlite_kernels.triton_set import writing
    from kvlite_kernels.triton_set.launching import TritonKernels
    from kvlite_kernels.triton_set.scratch import Scratch

    scratch = Scratch(
        rows,
        max(layer.query_heads for layer in layers),
        max(layer.query_heads // layer.kv_heads for layer in layers),
        max(layer.keys for layer in layers),
        max(layer.v_dim for layer in layers),
        _processor(device),
        device,
    )
    kernels = TritonKernels(scratch)
    return KernelSet("triton", kernels.attend, kernels, scratch.num_bytes, writing.quantise)


def _processor(device: torch.device) -> Processor:
    from kvlite_kernels.triton_set.tiles import INTERPRETER, Processor

    if device.type != "cuda":
        return INTERPRETER
    return Processor(_capability(device), torch.cuda.get_device_properties(device).multi_processor_count)


def _capability(device: torch.device) -> int:
    """Compute capability times ten; 0 is the interpreter."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
