"""The options of a model and of its cache, typed once: what the command line, settings files and Python fill in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """The model, how it is loaded, and the cache it answers with."""

    model: str
    kv_budget: str = "auto"
    kv_per_seq: str | None = None
    kv_policy: str = "heavy-hitter"
    kv_dtype: str = "auto"
    on_full: str | None = None  # as the policy does
    pin_system: bool = True
    prefill_chunk: int = 512
    quant: str = "none"
    dtype: str = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    fuse: bool = True
    kernels: str = "auto"
    capture: bool | None = None  # where it is known to pay
    offline: bool = False
    think: str = "auto"
