"""The memory a run is predicted to take, one term a line, before anything is loaded. Rules, not measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from kvlite.memory.format import DTYPE_BYTES, SlotFormat, human_bytes
from kvlite.memory.plan import MOST_CHUNK, CachePlan
from kvlite.memory.shape import ModelShape

DeviceKind = Literal["cuda", "cpu"]

QUANT_BYTES = {"8bit": 1.0, "4bit": 0.516, "nf4": 0.5625, "fp4": 0.5625}
"""Bytes per weight of a linear layer: 4 bits and an fp32 scale per 64 weights, which `4bit` quantises once more."""

PACKED_BYTES = {"4bit": 0.625, "8bit": 1.0}
"""The same on a CPU, where they are packed for torch's kernels: 4 bits with a scale and an offset per 32 weights."""

CUDA_CONTEXT_BYTES = 500_000_000  # driver context, cuBLAS workspaces and loaded kernels; differs per GPU and driver
ATTENTION_TILE_BYTES = {"cuda": 64 * 2**20, "cpu": 16 * 2**20}  # attention works in tiles of so many fp32 logits
ATTENTION_TILES = 4  # logits, their mask, probabilities, and a widened copy of keys or values
SAMPLING_COPIES = 4  # fp32 logits, sorted, their indices and cumulative sums


@dataclass(frozen=True, slots=True)
class Term:
    """One line of the prediction; `predicted_bytes` is None where it cannot be known."""

    name: str
    predicted_bytes: int | None
    note: str


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights as they are stored; `by_dtype` is bytes per safetensors dtype (`BF16`, `F32`, `U8`, ...).

    Pickles, which are not looked into, have neither `parameters` nor dtypes. `packed_bytes` is what a GGUF file takes
    on a CPU in bfloat16, where blocks of `packed_types` stay packed, of which most bytes are first; `block_bytes` in
    half precision where these blocks stay as they are.
    """

    num_bytes: int
    parameters: int | None = None
    by_dtype: Mapping[str, int] = field(default_factory=dict)
    packed_bytes: int | None = None
    packed_types: tuple[str, ...] = ()
    block_bytes: int | None = None

    def unpacked(self) -> Weights:
        """The same where nothing stays packed."""
        return replace(self, packed_bytes=None, packed_types=(), block_bytes=None)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The terms of a run; unknown ones count as nothing."""

    terms: tuple[Term, ...]

    @property
    def total_bytes(self) -> int:
        return sum(term.predicted_bytes or 0 for term in self.terms)

    def predicted(self) -> dict[str, int]:
        """The known terms by name."""
        return {term.name: term.predicted_bytes for term in self.terms if term.predicted_bytes is not None}


def cache_terms(cache: CachePlan) -> tuple[Term, ...]:
    """The bytes that the cache allocates; together exactly `cache.reserved_bytes`."""
    slots = f"{cache.slots:,} tokens" if cache.rows == 1 else f"{cache.slots:,} tokens in each of {cache.rows} rows"
    return (
        Term("kv", cache.k_v_bytes, f"keys and values of {slots}"),
        Term("policy_state", cache.policy_state_bytes, "what the policy keeps about each slot"),
        Term("positions", cache.position_bytes, "position and rotation, 8 B a slot"),
        Term("staging", cache.staging_bytes, "one more slot per KV head, for what is discarded"),
        Term("constant_state", cache.state_bytes, "convolutions, SSM and linear attention; does not grow"),
    )


def pass_terms(
    shape: ModelShape, stored: SlotFormat, rows: int, chunk: int, quant: str, device: DeviceKind
) -> tuple[Term, ...]:
    """The memory of passes through the model, beside weights and cache, with chunks of `chunk` tokens a row."""
    fed = min(rows * chunk, MOST_CHUNK) + rows - 1  # rows share the tokens of a chunk, beside which others decode
    element, fp32 = DTYPE_BYTES[shape.dtype], DTYPE_BYTES["float32"]
    logits = rows * shape.vocab * (element + SAMPLING_COPIES * fp32)
    widened = shape.hidden * shape.intermediate * element if quant != "none" else 0  # one 4-bit matrix
    scratch = ATTENTION_TILES * ATTENTION_TILE_BYTES[device] + logits + widened
    terms = (
        Term("activations", fed * _activation_bytes(shape, stored), f"one pass of {fed} tokens"),
        Term("scratch", scratch, "attention tiles and the logits of one step"),
    )
    context = Term("cuda_context", CUDA_CONTEXT_BYTES, "the driver's own; an estimate")
    return (*terms, context) if device == "cuda" else terms


def _activation_bytes(shape: ModelShape, stored: SlotFormat) -> int:
    """Bytes of one layer's activations for a token, as many as are alive together at most.

    In the model's dtype: residual, its normed copy, the sums of attention and feed-forward and two temporaries (6
    hidden); gate, up and their product (3 intermediate); q, k, v before and after rotation, and the output. Quantised
    slots add, in fp32, the rotated queries and output, and k and v rotated, in steps and rounded.
    """
    heads = shape.query_heads
    widest = max(
        2 * (heads * layer.k_dim + layer.kv_heads * (layer.k_dim + layer.v_dim)) + heads * layer.v_dim
        for layer in shape.layers
    )
    coding = max(
        heads * (layer.k_dim + 2 * layer.v_dim) + 3 * layer.kv_heads * (layer.k_dim + layer.v_dim)
        for layer in shape.layers
    )
    in_dtype = 6 * shape.hidden + 3 * shape.intermediate + widest
    return in_dtype * DTYPE_BYTES[shape.dtype] + (coding * DTYPE_BYTES["float32"] if stored.is_quantised else 0)


def packed_bits(quant: str, device: str) -> int:
    """Bits in which weights are packed on a device of that kind; 0 where bitsandbytes has them, or nothing does."""
    return {"4bit": 4, "8bit": 8}.get(quant, 0) if device == "cpu" else 0


# Bytes in 16 bits for a byte as it is stored: of codes of 8 bits, of 4 with a scale for 32 (MXFP4), of 4 in words.
_UNPACKED = {"F8_E4M3": 2, "F8_E5M2": 2, "I8": 2, "U8": 4 * 16 / 17, "I32": 4}


def _is_unpacked(shape: ModelShape, device: str) -> bool:
    """True where transformers multiplies with whole numbers what is stored in fewer bits."""
    return shape.quant_method == "compressed-tensors" or (
        device == "cpu" and shape.quant_method in ("fp8", "mxfp4", "mxfp8")
    )


def stays_packed(weights: Weights | None, dtype: str, quant: str, device: str) -> bool:
    """True where blocks of a GGUF file stay packed: on a CPU, in bfloat16, unless they are quantised anew."""
    is_packable = weights is not None and weights.packed_bytes is not None
    return is_packable and device == "cpu" and dtype == "bfloat16" and quant == "none"


def keeps_blocks(weights: Weights | None, dtype: str, quant: str, device: str, kernels: str) -> bool:
    """True where blocks of a GGUF file stay as they are: on CUDA in half precision, where Triton is asked for."""
    has_blocks = weights is not None and bool(weights.packed_types)
    return has_blocks and device == "cuda" and kernels == "triton" and quant == "none" and dtype != "float32"


def weights_held_in(weights: Weights | None, dtype: str, quant: str, device: str, kernels: str) -> str:
    """The form that most of the weights are held in once loaded: `bfloat16`, `4bit`, `Q4_K with Q6_K`."""
    stays = stays_packed(weights, dtype, quant, device) or keeps_blocks(weights, dtype, quant, device, kernels)
    if weights is not None and weights.packed_types and stays:
        first, *others = weights.packed_types
        return f"{first} with {', '.join(others)}" if others else first
    return dtype if quant == "none" else quant


def weight_term(shape: ModelShape, weights: Weights | None, quant: str, device: str, kernels: str = "auto") -> Term:
    """The weights as they are once loaded: in the shape's dtype, or quantised."""
    if weights is None:
        return Term("weights", None, "there are no weights here to measure")
    if shape.is_quantised and _is_unpacked(shape, device):
        size = sum(held * _UNPACKED.get(dtype, 1) for dtype, held in weights.by_dtype.items())
        return Term("weights", int(size), f"{shape.quant_method}, unpacked into {shape.dtype} when loaded")
    if shape.is_quantised:
        return Term("weights", weights.num_bytes, "as stored, quantised already")
    if weights.parameters is None:
        return Term("weights", weights.num_bytes, "as stored; not safetensors, so not looked into")
    element = DTYPE_BYTES[shape.dtype]
    if stays_packed(weights, shape.dtype, quant, device):
        named = weights_held_in(weights, shape.dtype, quant, device, kernels)
        return Term("weights", weights.packed_bytes, f"{named}, packed; the rest in bfloat16")
    if keeps_blocks(weights, shape.dtype, quant, device, kernels):
        named = weights_held_in(weights, shape.dtype, quant, device, kernels)
        return Term("weights", weights.block_bytes, f"{named}, as in the file; the rest in {shape.dtype}")
    if quant == "none":
        return Term("weights", weights.parameters * element, f"{weights.parameters:,} parameters in {shape.dtype}")
    copies = 1 if shape.is_tied else 2
    kept = min(weights.parameters, shape.vocab * shape.hidden * copies)
    if packed_bits(quant, device):
        rate, held = PACKED_BYTES[quant], kept + copies * shape.vocab * DTYPE_BYTES["bfloat16"]
        note = f"embedding and head 1 ({human_bytes(held)})"
    else:
        rate, held = QUANT_BYTES[quant], kept * element
        note = f"embedding and head stay {shape.dtype} ({human_bytes(held)})"
    size = held + int((weights.parameters - kept) * rate)
    return Term("weights", size, f"{quant}: {rate} B a weight; {note}")
