"""How many kernels a decoder layer launches for one decoded token on CUDA, counted on a machine without a GPU.

    python benchmarks/launches.py [--families llama,qwen2,qwen3,gemma2] [--policy heavy-hitter] [--json]

A tiny model of each family decodes against full slots on tensors without data, and every operation that is a kernel
there is counted: not those that give a view, nor those that only allocate. A product and, from torch 2.9 on, an RMS
norm are one each; a Triton kernel is counted where it would be launched. Models of different depth tell what a layer
costs from what a step does. Without triton, or with TRITON_INTERPRET set, what runs on Triton is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from kvlite.cache import cache as cache_module
from kvlite.cache.cache import SlotCache
from kvlite.cache.layer import Layer
from kvlite.cache.policy import load_policy
from kvlite.memory.budget import Budget
from kvlite.memory.format import slot_format
from kvlite.memory.plan import CacheSpec, plan_cache
from kvlite.memory.shape import ModelShape
from kvlite.models.fusing import fuse
from kvlite.models.loaded import LoadedModel
from kvlite.models.verify import admit
from kvlite_kernels import reference
from kvlite_kernels.backend import LayerSizes

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 24},
}
TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
DEPTHS = (2, 4)  # even, because every other layer of some families slides
SLOTS = 32
META = torch.device("meta")
ONE_KERNEL = ("aten::linear", "aten::rms_norm")
"""Composite operations that CUDA has a kernel for."""

ALLOCATING = ("aten::empty", "aten::new_empty", "aten::detach", "aten::lift_fresh")


@dataclass(frozen=True)
class Launches:
    """Kernels of one decode step: of each layer, between its products and on its slots, and of everything else."""

    family: str
    modules: str
    slots: str
    fused: tuple[str, ...]
    dense_per_layer: float
    slots_per_layer: float
    step: float

    @property
    def per_layer(self) -> float:
        """Of one layer in all."""
        return self.dense_per_layer + self.slots_per_layer


class Counting(TorchDispatchMode):
    """Counts the operations that are kernels on CUDA, by whether they are on slots."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[bool] = Counter()
        self.is_on_slots = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        is_composite = func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
        if is_composite and name not in ONE_KERNEL:
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if not name.startswith(ALLOCATING) and _works(func, args, out):
            self.launch()
        return out

    def launch(self) -> None:
        """One kernel."""
        self.counts[self.is_on_slots] += 1

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is done inside, on slots and not, Triton kernels too."""

        def marked(work: Callable[..., Any]) -> Callable[..., Any]:
            def on_slots(*args: Any, **options: Any) -> Any:
                self.is_on_slots = True
                try:
                    return work(*args, **options)
                finally:
                    self.is_on_slots = False

            return on_slots

        with (
            patch.object(Layer, "attend", marked(Layer.attend)),
            patch.object(SlotCache, "begin", marked(SlotCache.begin)),
            patch.object(SlotCache, "end", marked(SlotCache.end)),
            patch.object(reference, "sums_widely", lambda device: True),  # as on CUDA with torch 2.8 or later
            _launching(self.launch),
            self,
        ):
            yield


def _works(func: Any, args: Any, out: Any) -> bool:
    """True of an operation that writes on the device, and does not only give a view of what is there."""
    made = [tensor for tensor in _tensors(out) if tensor.device == META]
    held = {tensor.untyped_storage()._cdata for tensor in _tensors(args)}
    return bool(made) and (func._schema.is_mutable or any(part.untyped_storage()._cdata not in held for part in made))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


@contextmanager
def _launching(launch: Callable[[], None]) -> Iterator[None]:
    """Let Triton kernels call `launch` instead of running."""
    if not has_triton():
        yield
        return
    from triton.runtime.jit import JITFunction

    with patch.object(JITFunction, "__getitem__", lambda self, grid: lambda *args, **options: launch()):
        yield


def has_triton() -> bool:
    """True where Triton's kernels can be counted."""
    return find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") != "1"


def tiny(family: str, layers: int, modules: str) -> LoadedModel:
    """A model of `family` whose modules are `unfused`, or fused on `torch` or `triton`, without data."""
    config = AutoConfig.for_model(family, **{**TINY, **FAMILIES[family]}, num_hidden_layers=layers)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().to(torch.bfloat16)
    shape = ModelShape.from_config({**config.to_dict(), "dtype": "bfloat16"})
    loaded = admit(LoadedModel(model, None, shape, torch.bfloat16, torch.device("cpu"), "none"))  # type: ignore[arg-type]
    if modules != "unfused":
        loaded = fuse(loaded)
    if modules == "triton":  # tensors without data cannot be compared
        from kvlite_kernels.triton_set.fused_ops import TritonOps
        from kvlite_kernels.triton_set.tiles import Processor

        for module in model.modules():
            if hasattr(module, "ops"):
                module.ops = TritonOps(Processor(90, 132))
    torch.nn.Module.to(model, META)
    return replace(loaded, device=META)


def full_cache(loaded: LoadedModel, policy_name: str, kernels: str) -> SlotCache:
    """One row of slots on `torch` or `triton`."""
    policy, stored = load_policy(policy_name), slot_format("auto", "bfloat16")
    spec = CacheSpec(stored, policy.state_bytes_per_slot, policy.min_slots(), evicts=True)
    plan = plan_cache(loaded.shape, Budget.parse(f"{SLOTS}tok"), spec, free_bytes=None)
    if kernels == "torch":
        return SlotCache(loaded.shape, plan, policy, stored, META)

    from kvlite_kernels.triton_set.backend import TritonBackend
    from kvlite_kernels.triton_set.tiles import Processor

    heads = loaded.shape.query_heads
    sizes = [LayerSizes(heads, heads, SLOTS + 1, 256, 256)]
    backend = TritonBackend(sizes, 1, [torch.bfloat16], META, Processor(90, 132))
    with patch.object(cache_module, "open_backend", lambda *_: backend):  # which would miss the device
        return SlotCache(loaded.shape, plan, policy, stored, META)


def count_step(loaded: LoadedModel, cache: SlotCache) -> Counter[bool]:
    """The kernels of one step that decodes a token for which another one goes."""
    counting = Counting()
    for tokens in (*[8] * (SLOTS // 8), 1):
        ids = torch.zeros(1, tokens, dtype=torch.int64, device=META)
        pos = torch.zeros(1, tokens, dtype=torch.int32, device=META)
        counting = Counting()
        with counting.counting():
            loaded.forward(ids, cache, cache.begin(slice(0, 1), pos, pos, (tokens,), None))
    assert all(cache.live(0, part.num_slots) == part.num_slots for part in cache.parts)
    return counting.counts


def measure(family: str, policy: str, modules: str, slots: str) -> Launches:
    """Count two depths of the family and take the layer from the step."""
    counts, fused = [], ()
    for depth in DEPTHS:
        loaded = tiny(family, depth, modules)
        fused = loaded.fused
        counts.append(count_step(loaded, full_cache(loaded, policy, slots)))
    few, many = counts
    dense, on_slots = ((many[key] - few[key]) / (DEPTHS[1] - DEPTHS[0]) for key in (False, True))
    return Launches(family, modules, slots, fused, dense, on_slots, few.total() - DEPTHS[0] * (dense + on_slots))


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the kernels that a decode step launches.")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--policy", default="heavy-hitter")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    logging.set_verbosity_error()
    ways = [("unfused", "torch"), ("torch", "torch")]
    ways += [("unfused", "triton"), ("triton", "triton")] if has_triton() else []
    row = "{:10} {:8} {:7} {:>12} {:>12} {:>10} {:>6}  {}"
    if not given.json:
        print(row.format("family", "modules", "slots", "between/lyr", "slots/lyr", "layer", "step", "fused").rstrip())
    for family in given.families.split(","):
        for way in ways:
            found = measure(family, given.policy, *way)
            numbers = (found.dense_per_layer, found.slots_per_layer, found.per_layer, found.step)
            line = row.format(family, *way, *(f"{number:g}" for number in numbers), ", ".join(found.fused)).rstrip()
            print(json.dumps({**asdict(found), "per_layer": found.per_layer}) if given.json else line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
