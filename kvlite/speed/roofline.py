"""The roofline of decoding: a token cannot come faster than the bytes it needs can be read.

seconds per token  >=  (weights read once + live slots) / bytes the device copies per second

The limits of the device are measured in the run that is compared with them: bytes copied, products computed.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from kvlite.models.loaded import LoadedModel

_REPEATS = 5
_COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}  # several times any processor's cache
_SIDE = {"cuda": 8192, "cpu": 768}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True, slots=True)
class Ceilings:
    """`copy_bytes_s` counts what a copy of `copied_bytes` reads and what it writes; `flop_s` is of square products."""

    copy_bytes_s: float
    copied_bytes: int
    flop_s: float
    side: int
    dtype: str


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Copy bytes and multiply square matrices in `dtype`, medians of a few; sizes follow from the device."""
    copied_bytes = _COPY_BYTES.get(device.type, _COPY_BYTES["cpu"])
    if device.type == "cuda":
        copied_bytes = min(copied_bytes, torch.cuda.mem_get_info(device)[0] // 8)
    source = torch.ones(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _median_s(lambda: target.copy_(source), device)
    side = _SIDE.get(device.type, _SIDE["cpu"])
    factor = torch.randn(side, side, device=device, dtype=dtype)
    product = torch.empty_like(factor)
    product_s = _median_s(lambda: torch.mm(factor, factor, out=product), device)
    name = str(dtype).removeprefix("torch.")
    return Ceilings(2 * copied_bytes / copy_s, copied_bytes, 2 * side**3 / product_s, side, name)


def weights_read_bytes(loaded: LoadedModel) -> int | None:
    """Bytes of weights one decoded token reads: all but an embedding table that the head does not share.

    None for a mixture of experts, which reads some of them.
    """
    text = loaded.model.config.get_text_config()
    if any((getattr(text, name, None) or 0) > 1 for name in _EXPERTS):
        return None
    embedding: Any = loaded.model.get_input_embeddings()
    head: Any = loaded.model.get_output_embeddings()
    table: Tensor = embedding.weight
    is_shared = head.weight.data_ptr() == table.data_ptr()
    return loaded.weight_bytes - (0 if is_shared else table.nbytes)


def device_name(device: torch.device) -> str:
    """The name of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def _median_s(work: Callable[[], object], device: torch.device) -> float:
    """The median seconds of a few runs of `work`, each waited for, after two that warm up."""
    timings = []
    for number in range(_REPEATS + 2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        if number > 1:
            timings.append(time.perf_counter() - start)
    return median(timings)
