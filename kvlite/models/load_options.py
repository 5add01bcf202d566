"""Options of loading. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """`dtype` as config.json spells it, or None for the model's own; `quant` is none or a key of QUANT_BYTES.

    `kernels`, one of `kvlite_kernels.choice.KERNELS`, are those that fused modules and 4-bit weights run on.
    """

    dtype: str | None = None
    quant: str = "none"
    trust_remote_code: bool = False
    allow_pickle: bool = False
    fuse: bool = True
    kernels: str = "auto"
