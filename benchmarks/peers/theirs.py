"""`transformers.generate` as peers: its caches, and its weights in 4 bits."""

from __future__ import annotations

import time
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from peers.peer import Case, NotAvailable, Took
from peers.shapes import sharing_weights

NF4_BLOCK = 64
"""Weights that share a scale."""


class _Stamps(BaseStreamer):
    """The time of each token; the prompt is put first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Generate:
    """`generate` with one of its caches, greedy and without an end."""

    note = ""

    def __init__(self, model: PreTrainedModel, name: str, cache: str, **settings: Any) -> None:
        self.model, self.name, self.cache, self.settings = model, name, cache, settings

    def answer(self, prompt: list[int], tokens: int, case: Case) -> Took:
        """As `Peer.answer`."""
        ids = torch.tensor([prompt], device=self.model.device)
        stamps = _Stamps()
        start, used = time.perf_counter(), time.process_time()
        answers = self.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
                            eos_token_id=None, pad_token_id=0, streamer=stamps, cache_implementation=self.cache,
                            **self.settings)  # type: ignore[misc]  # fmt: skip
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        total_s, used = time.perf_counter() - start, time.process_time() - used
        ids_out = answers[0, case.context :].tolist()  # type: ignore[index]
        return Took(stamps.times[1] - start, total_s, tokens, ids_out, used)

    def read_bytes(self, case: Case) -> int | None:
        """Weights once, and the keys and values of the whole context."""
        config = self.model.config
        element = self.model.get_input_embeddings().weight.element_size()
        per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * element
        table = self.model.get_input_embeddings().weight
        is_shared = self.model.get_output_embeddings().weight is table
        held = {tensor.data_ptr(): tensor.nbytes for tensor in self.model.parameters()}
        return sum(held.values()) - (0 if is_shared else table.nbytes) + per_token * case.context


def static(model: PreTrainedModel) -> Generate:
    """A static cache, whose step transformers compiles on CUDA and leaves as it is elsewhere."""
    peer = Generate(model, "static", "static")
    peer.note = "compiled" if model.device.type == "cuda" else "not compiled: transformers does so on CUDA only"
    return peer


def quantized(model: PreTrainedModel) -> Generate:
    """A cache in 4 bits by quanto or hqq. Raises NotAvailable where neither is installed."""
    for module, package, backend, axis in (("optimum.quanto", "optimum-quanto", "quanto", 0), ("hqq", "hqq", "hqq", 1)):
        if _is_there(module):
            settings = {"backend": backend, "nbits": 4, "axis_key": axis, "axis_value": axis}  # as transformers advises
            peer = Generate(model, "quantized", "quantized", cache_config=settings)
            peer.note = f"{package} {version(package)}, 4 bits"
            return peer
    raise NotAvailable("QuantizedCache needs optimum-quanto or hqq, and neither is installed")


def in_nf4(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose linear layers but the head are NF4 of bitsandbytes. Raises NotAvailable without bitsandbytes.

    Layers whose channels are no multiple of a block stay as they are: bitsandbytes fails on them on some processors.
    """
    if not _is_there("bitsandbytes"):
        raise NotAvailable("bitsandbytes is not installed")
    import bitsandbytes

    quantised = sharing_weights(model)
    head = quantised.get_output_embeddings()
    for parent in list(quantised.modules()):
        for name, linear in list(parent.named_children()):
            if not isinstance(linear, nn.Linear) or linear is head or linear.in_features % NF4_BLOCK:
                continue
            layer = bitsandbytes.nn.Linear4bit(
                linear.in_features, linear.out_features, linear.bias is not None, linear.weight.dtype, quant_type="nf4"
            )
            layer.weight = bitsandbytes.nn.Params4bit(linear.weight.data.cpu(), requires_grad=False, quant_type="nf4")
            layer.bias = linear.bias
            setattr(parent, name, layer.to(linear.weight.device))
    return quantised.eval()  # bitsandbytes' fast path on a CPU is not for layers in training


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False
