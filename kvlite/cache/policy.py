"""The policy seam: which tokens a layer keeps when its slots are full. Holds no state and loads no torch.

A policy is a frozen dataclass. It declares what it needs and scores slots with functions of tensors (tensor methods
only, so that `kvlite plan` can read its declarations without torch). LayerSlots owns the state and the protection:
sinks, pins and the recent window are masked with +inf there, free slots with -inf, so a policy never sees them.

To add one: subclass `Policy` in a file of its own, link the paper, list the departures, and register the class under
the entry-point group `kvlite.policies`.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, ClassVar

from kvlite.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_POLICY = "heavy-hitter"
ON_FULL = ("evict", "stop", "error")
ENTRY_POINT_GROUP = "kvlite.policies"


class Statistic(Enum):
    """What of the attention row a policy accumulates per slot."""

    NONE = "none"  # attention-free
    MASS = "mass"  # probability, mean over the query group, summed over queries


@dataclass(frozen=True, slots=True)
class Policy(ABC):
    """Scores slots; the lowest score is evicted first.

    `sinks` first tokens are always kept; `decay` multiplies the accumulated statistic at every token seen.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    evicts: ClassVar[bool] = True
    statistic: ClassVar[Statistic] = Statistic.NONE

    sinks: int = 4
    decay: float = 1.0

    @property
    def state_bytes_per_slot(self) -> int:
        """Bytes of accumulated statistic (fp32) per slot and KV head, part of the budget."""
        return 0 if self.statistic is Statistic.NONE else 4

    @abstractmethod
    def recent(self, slots: int) -> int:
        """How many of the newest tokens are never evicted, at least 1, given `slots` per KV head."""

    @abstractmethod
    def score(self, statistic: Tensor | None, pos: Tensor, next_pos: Tensor) -> Tensor:
        """Score slots, higher is kept: `statistic` fp32 and `pos` int [B, H_KV, N], `next_pos` int [B, 1, 1]."""

    def when_full(self, wanted: str | None) -> str:
        """What happens when no slot is free: `wanted`, one of ON_FULL, or what the policy is for.

        Raises UsageError on any other word, and where a policy that evicts nothing is asked to.
        """
        if wanted is None:
            return "evict" if self.evicts else "stop"
        if wanted not in ON_FULL:
            raise UsageError(f"on-full is {wanted!r}; give one of {', '.join(ON_FULL)}")
        if wanted == "evict" and not self.evicts:
            raise UsageError(
                f"--on-full evict contradicts --kv-policy {self.name}, which evicts nothing; "
                f"give another policy, or --on-full stop or error"
            )
        return wanted

    def min_slots(self, pinned: int = 0) -> int:
        """The fewest slots per KV head that hold the sinks, `pinned` tokens besides, a recent window and one victim.

        Raises UsageError where the recent window leaves no slot however many there are.
        """
        kept = self.sinks + pinned
        for slots in range(kept + 2, 8 * kept + 4096):
            if kept + self.recent(slots) < slots:
                return slots
        raise UsageError(f"KV policy {self.name!r} protects every slot; its recent window must leave room")


def policy_names() -> list[str]:
    """The names of every installed policy, sorted."""
    return sorted(_entry_points())


def load_policy(name: str) -> Policy:
    """The policy called `name` with its defaults. Raises UsageError on an unknown name or a broken plug-in."""
    found = _entry_points()
    if name not in found:
        close = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(sorted(found))}"
        raise UsageError(f"unknown KV policy {name!r}; {hint}")
    try:
        policy = found[name].load()()
    except (ImportError, AttributeError, TypeError) as error:
        raise UsageError(f"KV policy {name!r} ({found[name].value}) cannot be loaded: {error}") from error
    if not isinstance(policy, Policy):
        raise UsageError(f"KV policy {name!r} ({found[name].value}) is not a kvlite.cache.policy.Policy")
    return policy


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in (*entry_points(group=ENTRY_POINT_GROUP), *_BUILT_IN)}


_BUILT_IN = tuple(
    EntryPoint(name, f"kvlite.cache.policies.{module}", ENTRY_POINT_GROUP)
    for name, module in (
        ("heavy-hitter", "heavy_hitter:HeavyHitter"),
        ("h2o", "h2o:H2O"),
        ("window", "window:Window"),
        ("full", "full:Full"),
    )
)
