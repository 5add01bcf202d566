"""The rule of eviction in plain torch: who is protected, and which slot each new token takes.

Letters: H_KV KV heads, N tokens in no order, S slots, T new tokens; dimensions before them are layers and rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Protection:
    """Tokens that stay whatever their score: the newest `recent`, the first `sinks`, spans `pins` int32 [n, P, 2].

    A head that holds more than `most_pinned` pinned tokens, those besides, keeps the best. Layers with a `window` keep
    neither sinks nor pins, and what no query can see any more goes first.
    """

    recent: int
    sinks: int
    window: int | None = None
    pins: Tensor | None = None
    most_pinned: int | None = None


def priority(score: Tensor, pos: Tensor, next_pos: Tensor, protection: Protection) -> Tensor:
    """The score [..., H_KV, N] of tokens at `pos`, +inf where protected and -inf where a slot is free.

    `next_pos` int [n, 1, 1] is the position that comes next. What is scored with no number goes first.
    """
    score = score.nan_to_num(nan=torch.finfo(score.dtype).min, posinf=torch.inf, neginf=-torch.inf)
    protected = pos >= next_pos - protection.recent
    if protection.window is not None:
        score = score.masked_fill(pos <= next_pos - protection.window, torch.finfo(score.dtype).min)
    else:
        protected = protected | (pos < protection.sinks)
        if protection.pins is not None:
            start, end = protection.pins[:, None, None].unbind(-1)  # [n, 1, 1, P]
            pinned = ((pos[..., None] >= start) & (pos[..., None] < end)).any(-1) & ~protected
            if protection.most_pinned is not None:
                best = score.masked_fill(~pinned, -torch.inf).topk(protection.most_pinned + 1, dim=-1).values
                pinned &= score > best[..., -1:]  # of equals none: what stays besides is then at least one victim
            protected |= pinned
    return score.masked_fill(protected, torch.inf).masked_fill_(pos < 0, -torch.inf)


def choose(priority: Tensor, pos: Tensor, num_slots: int) -> Tensor:
    """The slot of each new token so that the best S of S + T stay: int64 [..., H_KV, T], S where it is dropped.

    `priority` and `pos` [..., H_KV, S + T] are of the slots and then of the new tokens. The lowest (priority, position)
    goes first; free slots are taken in slot order, so live slots stay a prefix.
    """
    held, new = slice(num_slots), slice(num_slots, None)
    if pos.shape[-1] == num_slots + 1:
        return _choose_one(priority[..., held], pos[..., held], priority[..., new], pos[..., new])
    tokens = pos.shape[-1] - num_slots
    # New tokens come first: padding then loses to a free slot, and free slots go in slot order (the sorts are stable).
    everyone, everywhere = (torch.cat([x[..., new], x[..., held]], -1) for x in (priority, pos))
    order = everywhere.argsort(dim=-1, stable=True)
    order = order.gather(-1, everyone.gather(-1, order).argsort(dim=-1, stable=True))
    gone = torch.zeros_like(everyone, dtype=torch.bool).scatter_(-1, order[..., :tokens], True)
    born, vacated = ~gone[..., :tokens], gone[..., tokens:]
    # The i-th surviving new token takes the i-th vacated slot; there are as many of one as of the other.
    vacancy = torch.where(vacated, vacated.cumsum(-1) - 1, tokens)
    slot_of = torch.full((*pos.shape[:-1], tokens + 1), num_slots, dtype=torch.int64, device=pos.device)
    slot_of.scatter_(-1, vacancy, torch.arange(num_slots, device=pos.device).expand_as(vacancy))
    return torch.where(born, slot_of.gather(-1, (born.cumsum(-1) - 1).clamp(min=0)), num_slots)


def _choose_one(priority: Tensor, pos: Tensor, new_priority: Tensor, new_pos: Tensor) -> Tensor:
    """The oldest of the slots of lowest priority, unless the one new token ranks below it."""
    lowest = priority.amin(-1, keepdim=True)
    oldest, slot = torch.where(priority == lowest, pos, torch.iinfo(pos.dtype).max).min(-1, keepdim=True)
    stays = (new_priority > lowest) | ((new_priority == lowest) & (new_pos > oldest))
    return torch.where(stays, slot, pos.shape[-1])
