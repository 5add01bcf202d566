"""Weights in 4 and 8 bits on a CPU: packed one matrix at a time while transformers loads them, for torch's own kernels.

Linear maps take the bits that are asked for, output head and embedding 8 of them, in one copy where they are tied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from kvlite_kernels import packed
from kvlite_kernels.packed import Packed, Packed4, Packed8

_METHOD = "kvlite_packed"
_KINDS: dict[int, type[Packed4] | type[Packed8]] = {4: Packed4, 8: Packed8}
_ROUTERS = ("gate", "router")  # they choose experts by small differences, and are small


class PackedLinear(nn.Module):
    """A linear map over packed weights, multiplied in bfloat16 and given in the dtype of what it is fed.

    Until `hold` has given it weights it is as transformers builds a model before loading: on the meta device.
    """

    weight: Any
    bias: Tensor | None

    def __init__(self, outputs: int, inputs: int, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype, device="meta"), requires_grad=False)
        self.register_parameter("bias", bias)
        self.packed: Any = None

    @classmethod
    def of(cls, weights: Packed, bias: nn.Parameter | None) -> PackedLinear:
        """A map that holds `weights` from the start."""
        made = cls(*weights.shape, bias, packed.DTYPE)
        made.weight = made.hold(weights)
        return made

    def hold(self, weights: Packed) -> nn.Parameter:
        """Multiply with `weights` from now on; the codes as the parameter that is to be `weight`."""
        self.packed = weights
        scales = weights.grid if isinstance(weights, Packed4) else weights.scale
        self.register_buffer("scales", scales, persistent=False)
        return nn.Parameter(weights.codes, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        bias = self._parameters["bias"]
        rows = x.view(-1, self.in_features) if x.is_contiguous() else x.reshape(-1, self.in_features)
        if x.dtype is packed.DTYPE:
            return packed.multiply(rows, self.packed, bias).view(*x.shape[:-1], self.out_features)
        out = packed.multiply(rows.to(packed.DTYPE), self.packed, None if bias is None else bias.to(packed.DTYPE))
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)


class PackedEmbedding(nn.Module):
    """An embedding table in 8 bits, whose rows are unpacked when they are looked up, and multiplied by `factor`."""

    def __init__(self, weights: Packed8, dtype: torch.dtype, factor: Tensor | None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weights.shape
        self.weight = nn.Parameter(weights.codes, requires_grad=False)
        self.register_buffer("scales", weights.scale, persistent=False)
        self.packed = weights
        self.dtype = dtype
        self.factor = factor

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of ids [...]: [..., embedding_dim]."""
        rows = self.packed.rows(ids, self.dtype)
        return rows if self.factor is None else rows * self.factor


def join_packed(parts: Sequence[Any]) -> PackedLinear | None:
    """Maps of one input as one, whose outputs stand one after another; their weights become views of its own.

    None where they are not all packed alike.
    """
    if not all(type(part) is PackedLinear for part in parts) or len({type(part.packed) for part in parts}) > 1:
        return None
    maps = cast(Sequence[PackedLinear], parts)
    joined, views = type(maps[0].packed).join([part.packed for part in maps])
    for part, view in zip(maps, views, strict=True):
        part.weight = part.hold(view)
    biases = [part.bias for part in maps if part.bias is not None]
    bias = nn.Parameter(torch.cat([one.data for one in biases]), requires_grad=False) if biases else None
    return PackedLinear.of(joined, bias)


def packed_settings(bits: int) -> QuantizationConfigMixin:
    """The quantization_config with which transformers' `from_pretrained` packs a model in 4 or 8 bits."""
    return _PackedConfig(bits=bits)


@register_quantization_config(_METHOD)
class _PackedConfig(QuantizationConfigMixin):
    def __init__(self, bits: int) -> None:
        self.quant_method: Any = _METHOD
        self.bits = bits


@register_quantizer(_METHOD)
class _Packer(HfQuantizer):
    """Replaces linear maps before their weights are read, fills them as they are, and packs the head at the end."""

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        place, dot, name = param_name.rpartition(".")
        return dot + name == ".weight" and type(model.get_submodule(place)) is PackedLinear

    def get_quantize_ops(self) -> ConversionOps:
        return _Pack(self.quantization_config.bits)  # type: ignore[attr-defined]

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        bits, head = self.quantization_config.bits, model.get_output_embeddings()  # type: ignore[attr-defined]
        for place, module in list(model.named_modules()):
            parent, _, name = place.rpartition(".")
            if type(module) is nn.Linear and module is not head and not {name, parent.rpartition(".")[2]} & {*_ROUTERS}:
                shape = (module.out_features, module.in_features)
                if packed.is_served(shape, bits):
                    made = PackedLinear(*shape, module.bias, module.weight.dtype)
                    setattr(model.get_submodule(parent), name, made)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        pack_head(model)
        return model


class _Pack(ConversionOps):
    """Packs the weights of one map on their way into the model."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def convert(self, input_dict: dict[str, Any], *_: Any, model: Any = None, **__: Any) -> dict[str, Any]:
        """Give the parameters in place of those named."""
        found: dict[str, Any] = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            held = model.get_submodule(name.rpartition(".")[0])
            found[name] = held.hold(_KINDS[self.bits].of(weight)) if weight.shape == held.weight.shape else weight
        return found


def pack_head(model: Any) -> None:
    """Put a plain output head and a plain embedding into 8 bits, in one copy where they share their weights."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    shared: Packed8 | None = None
    is_tied = head is not None and table is not None and head.weight is table.weight
    if type(head) is nn.Linear:
        shared = Packed8.of(head.weight.data)
        _replace(model, head, PackedLinear.of(shared, head.bias))
    factor = getattr(table, "embed_scale", None)
    is_plain = type(table) is nn.Embedding or (
        isinstance(table, nn.Embedding)
        and isinstance(factor, Tensor)
        and type(table).__name__.endswith("ScaledWordEmbedding")
    )
    if is_plain and table.max_norm is None:
        dtype = table.weight.dtype
        weights = shared if is_tied and shared is not None else Packed8.of(table.weight.data)
        made = PackedEmbedding(weights, dtype, factor.to(dtype) if isinstance(factor, Tensor) else None)
        _replace(model, table, made)


def _replace(model: nn.Module, module: nn.Module, made: nn.Module) -> None:
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is module:
                setattr(parent, name, made)
