"""What the kernels compute, as the formulas say it: Python floats and loops, one query and one key at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvlite_kernels.reference import Geometry, Segment

NEVER = -math.inf


@dataclass(frozen=True)
class Attended:
    """`out` [B, H_Q, T, D_V], `lse` [B, H_Q, T], `probability` [B, H_Q, T, N] (of all segments, in order), float64."""

    out: Tensor
    lse: Tensor
    probability: Tensor


def attention(q: Tensor, q_pos: Tensor, segments: Sequence[Segment], geometry: Geometry) -> Attended:
    """Attend over every key of every segment that a query may see, one softmax per query."""
    batch, num_heads, num_queries, _ = q.shape
    outs, lses, rows = [], [], []
    for b in range(batch):
        for head in range(num_heads):
            kv_head = head * segments[0].k.shape[1] // num_heads
            keys, values, positions = _flat(segments, b, kv_head)
            sink = None if geometry.sink_logits is None else geometry.sink_logits[head].item()
            for t in range(num_queries):
                logits = [
                    _logit(q[b, head, t].tolist(), key, geometry)
                    if _sees(int(q_pos[b, t]), position, geometry.window)
                    else NEVER
                    for key, position in zip(keys, positions, strict=True)
                ]
                lse = _log_sum_exp(logits if sink is None else [*logits, sink])
                shares = [0.0 if logit == NEVER else math.exp(logit - lse) for logit in logits]
                rows.append(shares)
                lses.append(lse)
                outs.append(
                    [math.fsum(s * v[d] for s, v in zip(shares, values, strict=True)) for d in range(len(values[0]))]
                )
    shape = (batch, num_heads, num_queries)
    return Attended(
        torch.tensor(outs, dtype=torch.float64).view(*shape, -1),
        torch.tensor(lses, dtype=torch.float64).view(shape),
        torch.tensor(rows, dtype=torch.float64).view(*shape, -1),
    )


def received(given: Tensor, weight: Tensor, num_kv_heads: int, heads: str = "mean") -> Tensor:
    """What each query of each head gave a key [B, H_Q, T, N], by weight, over the `heads`: [B, H_KV, N]."""
    batch, num_heads, num_queries, num_keys = given.shape
    group = num_heads // num_kv_heads
    totals = torch.zeros(batch, num_kv_heads, num_keys, dtype=torch.float64)
    for b in range(batch):
        for kv_head in range(num_kv_heads):
            every = range(num_heads) if heads == "layer" else range(kv_head * group, (kv_head + 1) * group)
            for t in range(num_queries):
                said = [given[b, head, t].double() for head in every]
                together = torch.stack(said).max(0).values if heads == "max" else sum(said) / len(said)
                totals[b, kv_head] += together * float(weight[b, t])
    return totals


def below_equal_share(probability: Tensor) -> Tensor:
    """1 where a key is seen and got less than 1 / t of the t keys that are seen, of [B, H_Q, T, N]."""
    below = torch.zeros_like(probability)
    for index in range(probability[..., 0].numel()):
        row, out = probability.view(-1, probability.shape[-1])[index], below.view(-1, probability.shape[-1])[index]
        seen = [j for j, share in enumerate(row.tolist()) if share > 0]
        for j in seen:
            out[j] = float(row[j].item() < 1 / len(seen))
    return below


def survivors(held: Sequence[tuple[float, int]], new: Sequence[tuple[float, int]]) -> tuple[set[int], dict[int, int]]:
    """The rule of eviction for one head, from (priority, position) of slots and new tokens; position -1 is nobody.

    Returns the positions that stay, and the slot of each new token that stays.
    """
    everyone = sorted(token for token in (*held, *new) if token[1] >= 0)
    stay = {position for _, position in everyone[max(0, len(everyone) - len(held)) :]}
    vacated = [slot for slot, (_, position) in enumerate(held) if position not in stay]
    arrivals = [position for _, position in new if position in stay]
    return stay, dict(zip(arrivals, vacated, strict=False))


def _flat(segments: Sequence[Segment], b: int, kv_head: int) -> tuple[list[list[float]], list[list[float]], list[int]]:
    keys, values, positions = [], [], []
    for segment in segments:
        keys += segment.k[b, kv_head].tolist()
        values += segment.v[b, kv_head].tolist()
        positions += segment.pos[b, kv_head if segment.pos.shape[1] > 1 else 0].tolist()
    return keys, values, positions


def _sees(query: int, key: int, window: int | None) -> bool:
    return 0 <= key <= query and (window is None or query - key < window)


def _logit(query: list[float], key: list[float], geometry: Geometry) -> float:
    logit = math.fsum(a * b for a, b in zip(query, key, strict=True)) * geometry.scaling
    return logit if geometry.softcap is None else geometry.softcap * math.tanh(logit / geometry.softcap)


def _log_sum_exp(logits: Sequence[float]) -> float:
    top = max(logits)
    return NEVER if top == NEVER else top + math.log(math.fsum(math.exp(logit - top) for logit in logits))
