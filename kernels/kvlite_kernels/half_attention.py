"""Attention in bfloat16, on processors that multiply it four times as fast as float32.

One query whose attention nobody observes goes through torch's fused kernel, which reads keys and values as they are. Of
several, logits are rounded to bfloat16, as in transformers' eager attention; where they are too large for that, nothing
is given and the caller goes another way. The statistic is the weighted sum of the same probabilities. Letters as in
`reference`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvlite_kernels.reference import Geometry, Segment, bias_of, is_plain, visible
from kvlite_kernels.statistic import Observation

LARGEST = 32.0
"""The largest logit, either way, that is rounded: by at most a sixteenth."""

ELEMENTS = 1 << 21
"""Most logits held at once: 4 MiB."""

IS_FAST = any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
"""True where this processor multiplies bfloat16."""

_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def suits(q: Tensor, segments: Sequence[Segment], geometry: Geometry) -> bool:
    """True of bfloat16 throughout and keys in order, the queries' own last."""
    ends = [segment.before is not None and (segment.own == 0) == (segment is not segments[-1]) for segment in segments]
    return _is_half(q, segments) and all(ends) and segments[-1].own == q.shape[2] and geometry.sink_logits is None


def suits_among(q: Tensor, segments: Sequence[Segment], geometry: Geometry, observation: Observation | None) -> bool:
    """True of one row's queries whose own keys stand somewhere among those of the one segment, unobserved."""
    is_one = len(segments) == 1 and q.shape[0] == 1 and segments[0].before is None
    is_simple = observation is None and geometry.sink_logits is None and geometry.window is None
    return is_one and is_simple and geometry.softcap is None and _is_half(q, segments)


def suits_one(q: Tensor, segments: Sequence[Segment], geometry: Geometry, observation: Observation | None) -> bool:
    """True of one query in bfloat16 over plain segments of different KV heads, whose attention nobody observes."""
    return (
        observation is None
        and q.shape[2] == 1
        and q.device.type == "cpu"
        and _is_half(q, segments)
        and all(is_plain(one, geometry, None) and one.k.shape[-1] == one.v.shape[-1] for one in segments)
    )


def attend_one(q: Tensor, segments: Sequence[Segment], geometry: Geometry) -> Tensor:
    """As `reference.attend_beside`, of what `suits_one`: out [B, H_Q, 1, D]."""
    batch, num_heads, _, dim = q.shape
    heads = sum(segment.k.shape[1] for segment in segments)
    grouped = q.view(batch, heads, num_heads // heads, dim)  # those that share a KV head, as if one after another
    asking = [grouped] if len(segments) == 1 else grouped.split([segment.k.shape[1] for segment in segments], 1)
    outs = [
        _kernel(part, segment.k, segment.v, attn_mask=_mask(part, segment), scale=geometry.scaling)[0]
        for part, segment in zip(asking, segments, strict=True)
    ]
    return (outs[0] if len(outs) == 1 else torch.cat(outs, 1)).reshape(batch, num_heads, 1, dim)


def _mask(q: Tensor, segment: Segment) -> Tensor | None:
    """The bias of each key as the kernel takes it."""
    bias = segment.bias
    return None if bias is None else bias.to(q.dtype)[:, :, None].expand(-1, -1, q.shape[2], -1)


def _is_half(q: Tensor, segments: Sequence[Segment]) -> bool:
    """True where the processor multiplies bfloat16, and all is in it."""
    if not IS_FAST or q.dtype is not torch.bfloat16 or q.device.type != "cpu":
        return False
    return all(segment.k.dtype is segment.v.dtype is torch.bfloat16 for segment in segments)


def attend_half(
    q: Tensor, segments: Sequence[Segment], geometry: Geometry, observation: Observation | None
) -> tuple[Tensor, list[Tensor]] | None:
    """As `reference.attend_segments`, of what `suits`; None where a logit is larger than LARGEST."""
    batch, num_heads, num_queries = q.shape[:3]
    num_kv_heads = segments[0].k.shape[1]
    k, v = (_in_a_row([getattr(segment, name) for segment in segments], segments) for name in ("k", "v"))
    group, num_keys = num_heads // num_kv_heads, k.shape[1]
    before, bias = num_keys - num_queries, bias_of(segments, [(one.before or 0) + one.own for one in segments])
    grouped = q.unflatten(1, (num_kv_heads, group)).flatten(0, 1)  # [B * H_KV, G, T, D]
    out = torch.empty(batch * num_kv_heads, group, num_queries, v.shape[-1], dtype=q.dtype)
    total = torch.zeros(batch * num_kv_heads, num_keys)
    first = num_queries if observation is None else observation.first(num_queries)
    rows = max(1, ELEMENTS // (batch * num_heads * num_keys))
    nothing = q.new_zeros(1)
    for start in range(0, num_queries, rows):
        stop = min(start + rows, num_queries)
        seen = before + stop
        asking = grouped[:, :, start:stop].flatten(1, 2)
        logits = torch.baddbmm(nothing, asking, k[:, :seen].mT, beta=0, alpha=geometry.scaling)
        if not max(abs(float(end)) for end in logits.aminmax()) <= LARGEST:
            return None
        if bias is not None:
            logits.add_(bias.flatten(0, 1)[:, None, :seen])
        hidden = torch.ones(stop - start, stop - start, dtype=torch.bool).triu_(1)
        logits.unflatten(1, (group, -1))[..., before + start :].masked_fill_(hidden, -torch.inf)
        shares = logits.softmax(-1)
        out[:, :, start:stop] = torch.bmm(shares, v[:, :seen]).unflatten(1, (group, -1))
        if observation is not None and stop > first:
            weight = observation.weight[:, start:stop].repeat_interleave(num_kv_heads, 0) / group
            total[:, :seen] += torch.bmm(weight.repeat(1, group)[:, None], shares.float())[:, 0]
    result = out.view(q.shape[:3] + v.shape[-1:])
    if observation is None:
        return result, []
    return result, _parted(total.view(batch, num_kv_heads, num_keys), segments, observation)


def attend_among(q: Tensor, q_pos: Tensor, segment: Segment, geometry: Geometry) -> Tensor | None:
    """As `reference.attend_segments`, of what `suits_among`: out [1, H_Q, T, D_V]; None as `attend_half`."""
    assert isinstance(segment.k, Tensor) and isinstance(segment.v, Tensor)
    num_heads, num_queries = q.shape[1:3]
    num_kv_heads, num_keys = segment.k.shape[1:3]
    grouped, keys, values = q[0].unflatten(0, (num_kv_heads, -1)), segment.k[0].mT, segment.v[0]
    rows, nothing, outs = max(1, ELEMENTS // (num_heads * num_keys)), q.new_zeros(1), []
    for start in range(0, num_queries, rows):
        here = slice(start, start + rows)
        asking = grouped[:, :, here]
        logits = torch.baddbmm(nothing, asking.flatten(1, 2), keys, beta=0, alpha=geometry.scaling)
        if not max(abs(float(end)) for end in logits.aminmax()) <= LARGEST:
            return None
        if segment.bias is not None:
            logits.add_(segment.bias[0, :, None])
        hidden = ~visible(q_pos[:, here], segment.pos, None)[0]
        logits.view(*asking.shape[:3], num_keys).masked_fill_(hidden[:, None], torch.finfo(q.dtype).min)
        outs.append(torch.bmm(logits.softmax(-1), values).view(*asking.shape[:3], -1))
    return torch.cat(outs, 2).view(1, num_heads, num_queries, -1)


def _in_a_row(vectors: Sequence[Tensor], segments: Sequence[Segment]) -> Tensor:
    """Visibility of all segments to the queries, one after another: [B * H_KV, N, D]."""
    parts = [x[:, :, : (s.before or 0) + s.own] for x, s in zip(vectors, segments, strict=True)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 2)).flatten(0, 1)


def _parted(total: Tensor, segments: Sequence[Segment], observation: Observation) -> list[Tensor]:
    """The statistic [B, H_KV, N] of each segment; free slots received nothing."""
    if observation.heads == "layer":
        total = total.mean(1, keepdim=True).expand_as(total)
    sizes = [(segment.before or 0) + segment.own for segment in segments]
    parts = total.split(sizes, -1)
    return [
        torch.nn.functional.pad(part, (0, segment.k.shape[2] - size))
        for part, segment, size in zip(parts, segments, sizes, strict=True)
    ]
