"""Attention in plain torch: the reference that every kernel is held against, and what runs where no kernel does.

`attend` gives a partial attention over one segment of keys with its log-sum-exp; `merge` joins partials over disjoint
segments exactly; `statistic.received` gives what each key received once the merged log-sum-exp is known. Positions
decide visibility: a key at position -1 is free or padding, a query sees keys at its own position or before, inside the
layer's window.

Letters: B rows, T new tokens, N keys of a segment, S slots, H_Q query heads, H_KV KV heads, G = H_Q / H_KV, D head
dim of K, D_V of V. Logits, probabilities and sums are fp32 (fp64 if the inputs are).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from kvlite_kernels.kinds import Statistic
from kvlite_kernels.slots import Vectors
from kvlite_kernels.statistic import Observation, probabilities, received

TILE_ELEMENTS = 1 << 22
"""Most logits, or elements of a widened copy of keys or values, held at once: 16 MiB in fp32."""

CACHED_ELEMENTS = 1 << 20
"""Most logits held at once on a CPU, which goes over them several times: 4 MiB in fp32 stay in its cache."""

GPU_ELEMENTS = 1 << 24
"""Most logits held at once on a GPU, where a tile costs its launches: 64 MiB in fp32."""

_HALVES = (torch.bfloat16, torch.float16)
_HAS_WIDE_PRODUCTS = torch.__version__ >= TorchVersion("2.8") and torch.version.hip is None


@dataclass(frozen=True, slots=True)
class Segment:
    """Keys that are attended together: `k` [B, H_KV, N, D], `v` [B, H_KV, N, D_V], `pos` int [B, H_KV or 1, N].

    `statistic` fp32 [B, H_KV, N] is what the keys of slots received so far. `before` promises, unless it is None, that
    every query sees the first so many keys, that the `own` after them are those of the queries, one for each in their
    order, and that the rest are free. `bias` [B, H_KV, N] is added to the logits that a key has, after a soft cap.
    """

    k: Vectors
    v: Vectors
    pos: Tensor
    statistic: Tensor | None = None
    before: int | None = None
    own: int = 0
    bias: Tensor | None = None

    @property
    def all_visible(self) -> bool:
        """True where it is promised that every query sees every key."""
        return self.before == self.k.shape[2]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Parameters of a layer's attention besides its keys.

    `scaling` multiplies the logits, `softcap` bounds them by tanh, `window` is how many positions back a query sees
    (None: all), `sink_logits` [H_Q] is a learned extra logit per head that takes probability and has no value.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sink_logits: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Partial:
    """Attention over part of the keys: `out` [B, H_Q, T, D_V], `lse` [B, H_Q, T], `logits` [B, H_Q, T, N]."""

    out: Tensor
    lse: Tensor
    logits: Tensor


def attend(q: Tensor, q_pos: Tensor, segment: Segment, geometry: Geometry) -> Partial:
    """Attend `q` [B, H_Q, T, D] at positions `q_pos` int [B, T] over one segment; no visible key gives lse -inf."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    if multiplies_halves(q, segment):
        logits = _half_product(q, segment.k, transpose=True, out_dtype=dtype).mul_(geometry.scaling)
    else:
        logits = _grouped_matmul(q.to(dtype) * geometry.scaling, segment.k, transpose=True)
    if geometry.softcap is not None:
        logits = geometry.softcap * torch.tanh(logits / geometry.softcap)
    logits = biased(logits, segment)
    if not segment.all_visible:
        hidden = ~visible(q_pos, segment.pos, geometry.window)
        logits.unflatten(1, (segment.k.shape[1], -1)).masked_fill_(hidden[:, :, None], -torch.inf)
    highest = logits.amax(-1, keepdim=True)
    highest.masked_fill_(highest == -torch.inf, 0.0)
    weights = (logits - highest).exp_()  # a softmax whose sum is divided by after the product, which is smaller
    total = weights.sum(-1, keepdim=True)
    if multiplies_halves(q, segment):
        out = _half_product(weights.to(q.dtype), segment.v, transpose=False, out_dtype=dtype)
    else:
        out = _grouped_matmul(weights, segment.v, transpose=False)
    out = out / total.clamp(min=torch.finfo(dtype).tiny)
    return Partial(out, (highest + total.log()).squeeze(-1), logits)


def merge(outs: list[Tensor], lses: list[Tensor], sink_logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Join partial attentions over disjoint keys exactly: outs [..., D_V] and lses [...] -> (out, lse).

    A sink logit is one more key per head, without a value.
    """
    if sink_logits is not None:
        outs = [*outs, torch.zeros_like(outs[0])]
        lses = [*lses, sink_logits.to(lses[0].dtype)[None, :, None].expand_as(lses[0])]
    if len(outs) == 1:
        return outs[0], lses[0]
    stacked = torch.stack(lses)
    lse = stacked.logsumexp(0)
    weights = probabilities(stacked, lse)
    out = sum(weight[..., None] * partial for weight, partial in zip(weights, outs, strict=True))
    assert isinstance(out, Tensor)
    return out, lse


def attend_segments(
    q: Tensor, q_pos: Tensor, segments: Sequence[Segment], geometry: Geometry, observation: Observation | None
) -> tuple[Tensor, list[Tensor]]:
    """Attend over several segments as if they were one, in tiles of queries so that scratch stays bounded.

    Returns out [B, H_Q, T, D_V] in q's dtype and, where a `observation` is given, the statistic [B, H_KV, N] of each
    segment.
    """
    batch, num_heads, num_queries, _ = q.shape
    if num_queries == 1 and len(segments) == 1 and is_plain(segments[0], geometry, observation):
        asked = q if multiplies_halves(q, segments[0]) else _scaled(q, geometry)
        out, total = _attend_plainly(asked, segments[0], geometry.scaling, observation)
        return out.to(q.dtype), total
    num_kv_heads = segments[0].k.shape[1]
    num_keys = sum(segment.k.shape[2] for segment in segments)
    most = min(TILE_ELEMENTS, CACHED_ELEMENTS) if q.device.type == "cpu" else GPU_ELEMENTS
    tile = max(1, most // (batch * num_heads * num_keys))
    outs: list[Tensor] = []
    totals: list[Tensor] = []
    for start in range(0, num_queries, tile):
        here = slice(start, start + tile)
        partials = [attend(q[:, :, here], q_pos[:, here], segment, geometry) for segment in segments]
        out, lse = merge([one.out for one in partials], [one.lse for one in partials], geometry.sink_logits)
        outs.append(out.to(q.dtype))
        if observation is None or start + tile <= observation.first(num_queries):
            continue
        skip = max(0, observation.first(num_queries) - start)
        parts = received(
            [partial.logits[:, :, skip:] for partial in partials],
            lse[:, :, skip:],
            q_pos[:, here][:, skip:],
            [segment.pos for segment in segments],
            observation.of(slice(start + skip, start + tile)),
            num_kv_heads,
        )
        totals = [a + b for a, b in zip(totals, parts, strict=True)] if totals else parts
    if observation is not None and not totals:  # no query counts
        totals = [lse.new_zeros(*segment.k.shape[:3]) for segment in segments]
    return (outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)), totals


def attend_beside(
    q: Tensor, segments: Sequence[Segment], geometry: Geometry, observation: Observation | None
) -> tuple[Tensor, list[Tensor]]:
    """As `attend_segments`, of one query whose weight is 1, over plain segments of different KV heads, in their order.

    Returns out [B, H_Q, 1, D_V] and the statistic of each segment where an `observation` is given.
    """
    group = q.shape[1] // sum(segment.k.shape[1] for segment in segments)
    asked = q if all(multiplies_halves(q, segment) for segment in segments) else _scaled(q, geometry)
    both = [
        _attend_plainly(part, segment, geometry.scaling, observation)
        for part, segment in zip(
            asked.split([group * segment.k.shape[1] for segment in segments], 1), segments, strict=True
        )
    ]
    return torch.cat([out for out, _ in both], 1), [total for _, totals in both for total in totals]


def is_plain(segment: Segment, geometry: Geometry, observation: Observation | None) -> bool:
    """True where one softmax gives each key its probability, and no more is asked than the mean over heads."""
    is_mean = observation is None or (observation.kind is Statistic.MASS and observation.heads == "mean")
    return segment.all_visible and geometry.softcap is None and geometry.sink_logits is None and is_mean


def sums_widely(device: torch.device) -> bool:
    """True where torch multiplies halves as they are and gives their sums in fp32."""
    return _HAS_WIDE_PRODUCTS and device.type == "cuda"


def multiplies_halves(q: Tensor, segment: Segment) -> bool:
    """True where keys and values meet the queries as they are; else they are widened to fp32 at every step."""
    k, v = segment.k, segment.v
    is_half = isinstance(k, Tensor) and isinstance(v, Tensor) and q.dtype == k.dtype == v.dtype in _HALVES
    return is_half and sums_widely(q.device)


def _half_product(x: Tensor, keys: Vectors, *, transpose: bool, out_dtype: torch.dtype) -> Tensor:
    """As `_grouped_matmul`, of halves, with sums and what comes out in `out_dtype`."""
    assert isinstance(keys, Tensor)
    grouped, whole = x.reshape(-1, x.shape[1] // keys.shape[1] * x.shape[2], x.shape[-1]), keys.flatten(0, 1)
    factor = whole.mT if transpose else whole
    out = torch.bmm(grouped, factor) if out_dtype is x.dtype else torch.bmm(grouped, factor, out_dtype=out_dtype)
    return out.view(*x.shape[:3], -1)


def _attend_plainly(
    q: Tensor, segment: Segment, scaling: float, observation: Observation | None
) -> tuple[Tensor, list[Tensor]]:
    """As `attend_segments`, of one query whose weight is 1, in the fewest operations and the dtype of q.

    The query is scaled already, unless it `multiplies_halves`.
    """
    num_keys, k, v = segment.k.shape[2], segment.k, segment.v
    is_half = multiplies_halves(q, segment)
    if isinstance(k, Tensor) and isinstance(v, Tensor) and (is_half or q.dtype == k.dtype == v.dtype):
        grouped, by_head = q.unflatten(1, (k.shape[1], -1)).squeeze(3), lies_by_head(k)  # [B, H_KV, G, D]
        if by_head:  # in the order in which keys lie, so that none is copied
            grouped, k, v = (x.transpose(0, 1) for x in (grouped, k, v))
        asked, keys, values = (x.flatten(0, 1) for x in (grouped, k, v))
        if is_half:
            logits = torch.bmm(asked, keys.mT, out_dtype=torch.float32).mul_(scaling)
        else:
            logits = torch.bmm(asked, keys.mT)
        if segment.bias is not None:
            bias = segment.bias.transpose(0, 1) if by_head else segment.bias
            logits.view(*grouped.shape[:3], num_keys).add_(bias[:, :, None])
        shares = logits.softmax(-1)
        out = torch.bmm(shares.to(q.dtype), values).view(*grouped.shape[:3], -1)
        shares = shares.view(*grouped.shape[:3], num_keys)
        if by_head:
            out, shares = out.transpose(0, 1), shares.transpose(0, 1)
        out = out.reshape(*q.shape[:3], -1)
    else:
        weights = biased(_grouped_matmul(q, k, transpose=True), segment).softmax(-1)
        out = _grouped_matmul(weights, v, transpose=False)
        shares = weights.view(q.shape[0], k.shape[1], -1, num_keys)
    return out, [] if observation is None else [shares.mean(2)]


def lies_by_head(keys: Tensor) -> bool:
    """True of keys [B, H_KV, N, D] of which all rows of a head lie together."""
    return keys.shape[0] > 1 and keys.shape[1] > 1 and keys.stride(0) < keys.stride(1)


def biased(logits: Tensor, segment: Segment) -> Tensor:
    """Logits [B, H_Q, T, N] with the bias of each key, in place."""
    if segment.bias is not None:
        logits.unflatten(1, (segment.bias.shape[1], -1)).add_(segment.bias[:, :, None, None])
    return logits


def bias_of(segments: Sequence[Segment], sizes: Sequence[int]) -> Tensor | None:
    """The bias [B, H_KV, N] of the first `sizes[i]` keys of each segment, one after another; None: none has any."""
    if all(segment.bias is None for segment in segments):
        return None
    parts = [
        segment.pos.new_zeros(*segment.k.shape[:2], size, dtype=torch.float16)
        if segment.bias is None
        else segment.bias[..., :size]
        for segment, size in zip(segments, sizes, strict=True)
    ]
    return torch.cat(parts, -1)


def _scaled(q: Tensor, geometry: Geometry) -> Tensor:
    """Queries in fp32, times what logits are multiplied by."""
    return q.to(torch.promote_types(q.dtype, torch.float32)) * geometry.scaling


def visible(q_pos: Tensor, k_pos: Tensor, window: int | None) -> Tensor:
    """Keys that each query sees: bool [B, H_KV, T, N], or [B, 1, T, N] where all heads hold the same positions."""
    query, key = q_pos[:, None, :, None], k_pos[:, :, None, :]
    seen = (key >= 0) & (key <= query)
    if window is not None:
        seen &= key > query - window
    return seen


def _grouped_matmul(x: Tensor, keys: Vectors, *, transpose: bool) -> Tensor:
    """x [B, H_Q, T, X] times each group's keys or values [B, H_KV, N, D], widened to x's dtype a tile at a time."""
    batch, num_heads, num_queries, _ = x.shape
    num_kv_heads, num_keys, dim = keys.shape[1:]
    grouped = x.reshape(batch, num_kv_heads, -1, x.shape[-1])  # [B, H_KV, G * T, X]
    tile = num_keys if keys.dtype == x.dtype else max(1, TILE_ELEMENTS // (batch * num_kv_heads * dim))
    parts = []
    for start in range(0, num_keys, tile):
        part = keys[:, :, start : start + tile].to(x.dtype)
        parts.append(grouped @ part.mT if transpose else grouped[..., start : start + tile] @ part)
    if transpose:
        result = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    else:
        result = parts[0]
        for part in parts[1:]:
            result = result + part
    return result.view(batch, num_heads, num_queries, -1)
