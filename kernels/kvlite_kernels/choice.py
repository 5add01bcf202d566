"""The choice of kernels for a device: those of a cache and those of a model's modules. Loads triton on demand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from kvlite_kernels.backend import TORCH, Backend, KernelsUnavailable, LayerSizes
from kvlite_kernels.fused_ops import TORCH_OPS, FusedOps

if TYPE_CHECKING:
    from kvlite_kernels.triton_set.tiles import Processor

KERNELS = ("auto", "torch", "triton")


def choose_backend(
    wanted: str, layers: Sequence[LayerSizes], rows: int, dtypes: Sequence[torch.dtype], device: torch.device
) -> Backend:
    """The backend for `rows` rows of `layers` on `device`: `torch`, `triton`, or `auto`, which is what is known to run.

    `dtypes` are those of queries and of slots that hold numbers. Raises KernelsUnavailable where Triton is asked for
    and cannot serve.
    """
    if not _takes_triton(wanted, device):
        return TORCH
    if not layers:
        raise KernelsUnavailable("the model has no attention")
    from kvlite_kernels.triton_set.backend import TritonBackend

    return TritonBackend(layers, rows, dtypes, device, processor_of(device))


def choose_ops(wanted: str, device: torch.device) -> FusedOps:
    """The operations of fused modules on `device`, by the same rule and with the same error."""
    if not _takes_triton(wanted, device):
        return TORCH_OPS
    from kvlite_kernels.triton_set.fused_ops import TritonOps

    return TritonOps(processor_of(device))


def _takes_triton(wanted: str, device: torch.device) -> bool:
    """True where `wanted`, one of KERNELS, means Triton. Raises KernelsUnavailable where `device` cannot run it."""
    assert wanted in KERNELS, wanted
    if wanted != "triton":  # TODO: `auto` means it on CUDA once the kernels have passed their tests on a GPU
        return False
    if find_spec("triton") is None:
        raise KernelsUnavailable("triton is not installed")
    interprets = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not (device.type == "cpu" and interprets):
        raise KernelsUnavailable(f"Triton kernels need a CUDA device, and this is {device}")
    return True


def processor_of(device: torch.device) -> Processor:
    """The processor that Triton kernels run on."""
    from kvlite_kernels.triton_set.tiles import INTERPRETER, Processor

    if device.type != "cuda":
        return INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    return Processor(10 * major + minor, torch.cuda.get_device_properties(device).multi_processor_count)
