"""Weights in 4 and 8 bits on a CPU: packed one matrix at a time while transformers loads them, for torch's own kernels.

Linear maps take the bits that are asked for, output head and embedding 8 of them, in one copy where they are tied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from kvlite.models.block_linear import BlockEmbedding, BlockLinear
from kvlite.models.file_pages import FilePages
from kvlite_kernels import packed
from kvlite_kernels.blocks import Blocks
from kvlite_kernels.grid import DTYPE
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
        made = cls(*weights.shape, bias, DTYPE)
        made.weight = made.hold(weights)
        return made

    def hold(self, weights: Packed) -> nn.Parameter:
        """Multiply with `weights` from now on; the codes as the parameter that is to be `weight`."""
        self.packed = weights
        self.register_buffer("scales", weights.scales, persistent=False)
        return nn.Parameter(weights.codes, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        bias = self._parameters["bias"]
        rows = x.reshape(-1, self.in_features)
        if x.dtype is DTYPE:
            return packed.multiply(rows, self.packed, bias).view(*x.shape[:-1], self.out_features)
        out = packed.multiply(rows.to(DTYPE), self.packed, None if bias is None else bias.to(DTYPE))
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)


class PackedEmbedding(nn.Module):
    """A packed embedding table, whose rows are unpacked when they are looked up, and multiplied by `factor`."""

    def __init__(self, weights: Packed, dtype: torch.dtype, factor: Tensor | None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weights.shape
        self.weight = nn.Parameter(weights.codes, requires_grad=False)
        self.register_buffer("scales", weights.scales, persistent=False)
        self.packed = weights
        self.dtype = dtype
        self.factor = factor

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of ids [...]: [..., embedding_dim]."""
        rows = self.packed.rows(ids, self.dtype)
        return rows if self.factor is None else rows * self.factor


class SideBySide(nn.Module):
    """Maps of one input, whose outputs stand one after another: packed in two ways, they cannot be one matrix."""

    def __init__(self, parts: Sequence[PackedLinear]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.in_features, self.out_features = parts[0].in_features, sum(part.out_features for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        return torch.cat([part.forward(x) for part in self.parts], -1)


def join_packed(parts: Sequence[Any]) -> PackedLinear | SideBySide | None:
    """Maps of one input as one, whose outputs stand one after another; their weights become views of its own.

    Neighbours that are packed alike become one matrix. None where they are not all packed.
    """
    if not all(type(part) is PackedLinear for part in parts):
        return None
    joined = [_join_alike([*alike]) for _, alike in groupby(parts, lambda part: type(part.packed))]
    return joined[0] if len(joined) == 1 else SideBySide(joined)


def _join_alike(maps: Sequence[PackedLinear]) -> PackedLinear:
    if len(maps) == 1:
        return maps[0]
    joined, views = type(maps[0].packed).join([part.packed for part in maps])
    for part, view in zip(maps, views, strict=True):
        part.weight = part.hold(view)
    biases = [part.bias for part in maps if part.bias is not None]
    bias = nn.Parameter(torch.cat([one.data for one in biases]), requires_grad=False) if biases else None
    return PackedLinear.of(joined, bias)


class Source(Protocol):
    """Weights that are packed already where they lie."""

    def pack(self) -> Packed:
        """Read and pack them."""
        ...

    def blocks(self) -> Blocks:
        """Read them as they are."""
        ...


def packed_settings(
    bits: int,
    sources: Mapping[str, Source] | None = None,
    taken: set[str] | None = None,
    *,
    in_blocks: bool = False,
    pages: FilePages | None = None,
) -> QuantizationConfigMixin:
    """The quantization_config with which transformers' `from_pretrained` packs a model.

    In so many bits, or where `sources` are given those parameters that they name, each from its own: packed for a CPU,
    or `in_blocks`. The names of those go into `taken` before any weight is read. `pages` are let go as they are packed.
    """
    return _PackedConfig(bits, sources, taken, in_blocks, pages)


@register_quantization_config(_METHOD)
class _PackedConfig(QuantizationConfigMixin):
    def __init__(
        self,
        bits: int,
        sources: Mapping[str, Source] | None = None,
        taken: set[str] | None = None,
        in_blocks: bool = False,
        pages: FilePages | None = None,
    ) -> None:
        self.quant_method: Any = _METHOD
        self.bits = bits
        self.sources = sources
        self.taken = taken
        self.pages = pages
        self.linear: type[PackedLinear] | type[BlockLinear] = BlockLinear if in_blocks else PackedLinear

    def takes(self, name: str, shape: tuple[int, int]) -> bool:
        """True if the linear map `name` of that shape is to be packed."""
        if self.sources is not None:
            return f"{name}.weight" in self.sources
        is_router = bool({*name.split(".")[-2:]} & {*_ROUTERS})
        return packed.is_served(shape, self.bits) and not is_router

    def pack(self, name: str, weight: Tensor) -> Packed | Blocks:
        """The parameter `name`, whose value is `weight` unless it has a source."""
        if self.sources is not None:
            return self.read(self.sources[name])
        made = _KINDS[self.bits].of(weight)
        if self.pages is not None:
            self.pages.copied(weight.nbytes)
        return made

    def read(self, source: Source) -> Packed | Blocks:
        """The tensors of a source, in the form that is wanted."""
        return source.blocks() if self.linear is BlockLinear else source.pack()


@register_quantizer(_METHOD)
class _Packer(HfQuantizer):
    """Replaces linear maps before their weights are read, fills them as they are, and packs the head at the end."""

    quantization_config: _PackedConfig

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        place, dot, name = param_name.rpartition(".")
        return dot + name == ".weight" and type(model.get_submodule(place)) in (PackedLinear, BlockLinear)

    def get_quantize_ops(self) -> ConversionOps:
        return _Pack(self.quantization_config)

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        head, table, config = model.get_output_embeddings(), model.get_input_embeddings(), self.quantization_config
        taken = set()
        for name, module in list(model.named_modules()):
            if module is head or module is table:
                if type(module) is nn.Linear or is_plain_table(module):
                    taken.add(f"{name}.weight")
            elif type(module) is nn.Linear:
                shape = (module.out_features, module.in_features)
                if config.takes(name, shape):
                    parent, _dot, child = name.rpartition(".")
                    made = config.linear(*shape, module.bias, module.weight.dtype)
                    setattr(model.get_submodule(parent), child, made)
                    taken.add(f"{name}.weight")
        if config.sources is not None and config.taken is not None:
            config.taken |= taken & set(config.sources)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        if self.quantization_config.pages is not None:
            self.quantization_config.pages.let_go()
        pack_head(model, self.quantization_config)
        config = self.quantization_config
        config.sources = config.taken = config.pages = None  # which a model need not keep
        return model


class _Pack(ConversionOps):
    """Packs the weights of one map on their way into the model."""

    def __init__(self, config: _PackedConfig) -> None:
        self.config = config

    def convert(self, input_dict: dict[str, Any], *_: Any, model: Any = None, **__: Any) -> dict[str, Any]:
        """Give the parameters in place of those named."""
        found: dict[str, Any] = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            held = model.get_submodule(name.rpartition(".")[0])
            is_whole = weight.shape == held.weight.shape  # else transformers says what does not fit
            found[name] = held.hold(self.config.pack(name, weight)) if is_whole else weight
        return found


def pack_head(model: Any, config: _PackedConfig) -> None:
    """Pack a plain output head and a plain embedding, in one copy where they share their weights.

    In 8 bits, or where `config` has sources from those, and not at all where they have none for them.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = head is not None and table is not None and head.weight is table.weight
    places = {module: f"{name}.weight" for name, module in model.named_modules() if module in (head, table)}
    held: Packed | Blocks | None = None

    def pack(module: Any) -> Packed | Blocks | None:
        if config.sources is None:
            return Packed8.of(module.weight.data) if packed.is_served(module.weight.shape, 8) else None
        source = config.sources.get(places[module]) or (config.sources.get(places[table]) if is_tied else None)
        return None if source is None else config.read(source)

    if type(head) is nn.Linear:
        held = pack(head)
        if held is not None:
            _replace(model, head, _linear(held, head))
    if is_plain_table(table):
        weights = held if is_tied and held is not None else pack(table)
        factor, dtype = getattr(table, "embed_scale", None), table.weight.dtype
        if weights is not None:
            factor = factor.to(dtype) if isinstance(factor, Tensor) else None
            kind: Any = BlockEmbedding if isinstance(weights, Blocks) else PackedEmbedding
            _replace(model, table, kind(weights, dtype, factor))


def _linear(weights: Packed | Blocks, plain: nn.Linear) -> nn.Module:
    if isinstance(weights, Blocks):
        return BlockLinear.of(weights, plain.bias, plain.weight.dtype)
    return PackedLinear.of(weights, plain.bias)


def is_plain_table(table: Any) -> bool:
    """True for an embedding that only looks rows up, and at most multiplies them by a number."""
    is_scaled = isinstance(getattr(table, "embed_scale", None), Tensor)
    is_scaled = is_scaled and type(table).__name__.endswith("ScaledWordEmbedding")
    return (type(table) is nn.Embedding or (isinstance(table, nn.Embedding) and is_scaled)) and table.max_norm is None


def _replace(model: nn.Module, module: nn.Module, made: nn.Module) -> None:
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is module:
                setattr(parent, name, made)
