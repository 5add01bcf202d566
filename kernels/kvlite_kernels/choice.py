"""The choice of kernels for a device: those of a cache and those of a model's modules. Loads triton on demand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from shutil import which
from sysconfig import get_paths
from typing import TYPE_CHECKING

import torch
from torch.torch_version import TorchVersion

from kvlite_kernels.backend import TORCH, Backend, KernelsUnavailable, LayerSizes
from kvlite_kernels.fused_ops import TORCH_OPS, FusedOps

if TYPE_CHECKING:
    from kvlite_kernels.triton_set.tiles import Processor

KERNELS = ("auto", "torch", "triton")

OLDEST_TRITON = "3.4"
"""Older ones do not compile every kernel."""


def choose_backend(
    wanted: str, layers: Sequence[LayerSizes], rows: int, dtypes: Sequence[torch.dtype], device: torch.device
) -> Backend:
    """The backend for `rows` rows of `layers` on `device`: `triton`, or `torch`, which is also what `auto` means here.

    `dtypes` are those of queries and of slots that hold numbers. Raises KernelsUnavailable where Triton is asked for
    and cannot serve.
    """
    if not _takes_triton(wanted, device):
        return TORCH
    if not layers:
        raise KernelsUnavailable("the model has no attention")
    from kvlite_kernels.triton_set.backend import TritonBackend

    return TritonBackend(layers, rows, dtypes, device, processor_of(device))


def choose_ops(wanted: str, device: torch.device, *, four_bit: bool = True) -> FusedOps:
    """The operations of fused modules on `device`, by the same rule and with the same error.

    Without `four_bit` those leave products with 4-bit weights to bitsandbytes.
    """
    if not _takes_triton(wanted, device):
        return TORCH_OPS
    from kvlite_kernels.triton_set.fused_ops import TritonOps

    return TritonOps(processor_of(device), four_bit)


def _takes_triton(wanted: str, device: torch.device) -> bool:
    """True where `wanted`, one of KERNELS, means Triton. Raises KernelsUnavailable where `device` cannot run it."""
    assert wanted in KERNELS, wanted
    if wanted != "triton":
        return False
    if (why := obstacle(device)) is not None:
        raise KernelsUnavailable(why)
    return True


def obstacle(device: torch.device, layers: Sequence[LayerSizes] = (), dtypes: Sequence[torch.dtype] = ()) -> str | None:
    """The reason why Triton's kernels cannot run such layers on `device`, None where nothing speaks against it."""
    if find_spec("triton") is None:
        return "triton is not installed"
    interprets = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interprets:
        return f"Triton kernels need a CUDA device, and this is {device}"
    import triton

    from kvlite_kernels.triton_set.tiles import lacking

    if TorchVersion(triton.__version__) < OLDEST_TRITON:
        return f"the Triton kernels need triton {OLDEST_TRITON} or later, and this is {triton.__version__}"
    compiler = os.environ.get("CC") or "cc"
    if not interprets and not any(map(which, (compiler, "gcc", "clang"))):
        return "Triton needs a C compiler (gcc or clang), and none is installed"
    if not interprets and not (Path(get_paths()["include"]) / "Python.h").exists():
        return "Triton needs Python's header files (python3-dev), and they are not installed"
    capability = processor_of(device).capability
    lacks = (lacking(capability, layer, dtype) for layer, dtype in product(layers, dtypes))
    return next((f"the Triton kernels do not take {lack}" for lack in lacks if lack is not None), None)


def processor_of(device: torch.device) -> Processor:
    """The processor that Triton kernels run on."""
    from kvlite_kernels.triton_set.tiles import INTERPRETER, Processor

    if device.type != "cuda":
        return INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    return Processor(10 * major + minor, torch.cuda.get_device_properties(device).multi_processor_count)
