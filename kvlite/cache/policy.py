"""The policy seam: which tokens a layer keeps when its slots are full. Holds no state and loads no torch.

A policy is a frozen dataclass. It declares what it needs and scores candidates with functions of tensors (tensor
methods only, so that `kvlite plan` can read its declarations without torch). Slots own the state and the
protection: sinks, pins and the recent window are masked with +inf there, free slots with -inf, so that what a policy
says of them does not count.

To add one: subclass `Policy` and register the class under the entry-point group `kvlite.policies`.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, ClassVar, get_args, get_type_hints

from kvlite.cache.policy_text import read_value, split_settings, write_settings
from kvlite.errors import Interrupted, KvliteError, Terminated, TimeLimit, UsageError, is_out_of_memory
from kvlite.memory.allotment import HeadShares, by_layer, equally
from kvlite.memory.format import SlotFormat
from kvlite.memory.plan import AT_ONCE, MOST_CHUNK, CacheSpec
from kvlite_kernels.kinds import Heads, Noise, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from kvlite_kernels.slots import Vectors

DEFAULT_POLICY = "replay"
ON_FULL = ("evict", "stop", "error")
ENTRY_POINT_GROUP = "kvlite.policies"


MOST_SINKS = 1 << 20


class PolicyFailed(UsageError):
    """A policy of somebody else's raised an error, or its scores are none."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The tokens among which the best stay: slots and new tokens, N in each KV head, in no order.

    `pos` int [..., B, H_KV, N] is -1 where there is none, `next_pos` int [B, 1, 1] the position that comes next.
    Dimensions before B are layers, which are scored together where the policy does not look at queries. Keys, values
    and queries are looked up when a policy asks for them.
    """

    pos: Tensor
    next_pos: Tensor
    known: Tensor | None
    held: Sequence[tuple[Vectors, Vectors]]
    asking: Tensor | None = None

    @property
    def statistic(self) -> Tensor:
        """The statistic that a policy declares, fp32 [..., B, H_KV, N]. Raises LookupError where it declares none."""
        if self.known is None:
            raise LookupError("the policy looks at a statistic and declares none; set `statistic` in its class")
        return self.known

    @property
    def keys(self) -> Tensor:
        """The keys as slots hold them, rotated: [..., B, H_KV, N, D], not to be written to."""
        return _numbers([k for k, _ in self.held])

    @property
    def values(self) -> Tensor:
        """The values as slots hold them: [..., B, H_KV, N, D_V], not to be written to."""
        return _numbers([v for _, v in self.held])

    @property
    def queries(self) -> Tensor:
        """The queries of this step, rotated: [B, H_Q, T, D], padding on the left.

        Raises LookupError where the policy does not declare `needs_queries`.
        """
        if self.asking is None:
            raise LookupError("the policy looks at queries; set `needs_queries = True` in its class")
        return self.asking


@dataclass(frozen=True, slots=True)
class Policy(ABC):
    """Scores candidates; the lowest score is evicted first.

    `sinks` first tokens are always kept. An accumulated statistic is reduced from query heads to KV heads as `heads`
    says, multiplied by `decay` at every token seen, and counts the last `observed` queries (None: all): exactly where
    as many are fed at once; of n fewer, what was held is multiplied by 1 - n / observed, so that it always stands for
    `observed` queries. Where a policy `echoes`, what it knows of tokens is how much their own queries give them that
    ask once more from behind their chunk, and nothing is accumulated. So many tokens of a prompt come `at_once` per
    slot.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    evicts: ClassVar[bool] = True
    statistic: ClassVar[Statistic | None] = None
    needs_queries: ClassVar[bool] = False
    echoes: ClassVar[bool] = False
    at_once: ClassVar[float] = AT_ONCE

    sinks: int = 4
    decay: float = 1.0
    observed: int | None = None
    heads: Heads = "mean"

    def __post_init__(self) -> None:
        self._check("sinks", 0 <= self.sinks <= MOST_SINKS, f"0 to {MOST_SINKS:,}")
        self._check("decay", 0 < self.decay <= 1, "more than 0 and at most 1")
        self._check("observed", self.observed is None or self.observed >= 1, "1 or more, or none for all")
        self._check("heads", self.heads in get_args(Heads), f"one of {', '.join(get_args(Heads))}")

    def __str__(self) -> str:
        """The name and the settings that are not its defaults, as `load_policy` reads them."""
        defaults = type(self)().settings
        changed = {name: value for name, value in self.settings.items() if value != defaults[name]}
        return f"{self.name}:{write_settings(changed)}" if changed else self.name

    @property
    def settings(self) -> dict[str, object]:
        """The fields that change what is kept, by name: none where nothing is evicted."""
        idle = (
            ("decay", "observed", "heads") if self.statistic is None else ("decay", "observed") if self.echoes else ()
        )
        return {one.name: getattr(self, one.name) for one in fields(self) if self.evicts and one.name not in idle}

    @property
    def state_bytes_per_slot(self) -> int:
        """Bytes of accumulated statistic (fp32) and bias (fp16) per slot and KV head, part of the budget."""
        return (0 if self.statistic is None else 4) + (2 if self.has_bias else 0)

    @property
    def has_bias(self) -> bool:
        """True where a kept token stands for evicted ones, by a bias of its logits; the policy then `echoes`."""
        return False

    @property
    def noise(self) -> Noise | None:
        """The noise of a policy whose statistic is GUMBEL."""
        return None

    @abstractmethod
    def score(self, candidates: Candidates) -> Tensor:
        """Score candidates, higher is kept: fp32 [..., B, H_KV, N]."""

    def recent(self, slots: int) -> int:
        """The number of newest tokens that are never evicted, at least 1, given `slots` per KV head."""
        return 1

    def layer_slots(self, slots: int, most: int, depth: int, layers: int) -> int:
        """Slots of full-attention layer number `depth` of `layers`, which have `slots` on average and at most `most`.

        Never fewer for more `slots`, at least 1 where they are, and as many in all layers where `slots` is `most`.
        """
        return slots

    def when_full(self, wanted: str | None) -> str:
        """The action when no slot is free: `wanted`, one of ON_FULL, or the policy's own.

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
            recent = self.recent(slots)
            if not isinstance(recent, int) or recent < 1:
                raise UsageError(f"KV policy {self.name!r}: `recent` gave {recent!r}, not a whole number from 1 on")
            if kept + recent < slots:
                return slots
        raise UsageError(f"KV policy {self.name!r} protects every slot; its recent window must leave room")

    def cache_spec(
        self,
        stored: SlotFormat,
        on_full: str | None = None,
        chunk_limit: int = MOST_CHUNK,
        head_shares: HeadShares | None = None,
    ) -> CacheSpec:
        """The cache that the policy asks for, whatever its size: slots of `stored`, fed at most `chunk_limit` at once.

        `on_full` is as `when_full` takes it. `head_shares` are what the model's heads need, as far as the policy lets
        them differ: not where nothing is evicted, and only by layer where all heads of one keep the same tokens.
        """
        evicts = self.when_full(on_full) == "evict"
        is_own = evicts and type(self).layer_slots is not Policy.layer_slots
        rule, slots = self.layer_slots if is_own else equally, self.min_slots()
        shares = head_shares if evicts else None
        if shares is not None and self.statistic is not None and self.heads == "layer":
            shares = by_layer(shares)
        lowerable = f"sinks={self.sinks}" if self.sinks > type(self)().sinks else ""
        state_bytes = self.state_bytes_per_slot
        return CacheSpec(stored, state_bytes, slots, evicts, chunk_limit, rule, lowerable, shares, self.at_once)

    def _check(self, field: str, holds: bool, expected: str) -> None:
        if not holds:
            raise UsageError(f"KV policy {self.name!r}: {field} is {getattr(self, field)!r}; expected {expected}")


def _numbers(parts: Sequence[Vectors]) -> Tensor:
    """Keys or values as numbers, those of all parts one after another."""
    import torch

    from kvlite_kernels.lowbit import Packed, hadamard

    numbers = [hadamard(part.to(torch.float32)) if isinstance(part, Packed) else part for part in parts]
    return numbers[0] if len(numbers) == 1 else torch.cat(numbers, -2)


def is_built_in(policy: Policy) -> bool:
    """True of a policy that comes with kvlite."""
    return type(policy).__module__ == "kvlite.cache.policies"


def policy_names() -> list[str]:
    """The names of every installed policy, sorted."""
    return sorted(_entry_points())


def load_policy(text: str) -> Policy:
    """The policy that `text` names, as in `window` or `heavy-hitter:decay=0.999,pooled=5`.

    What the text leaves out keeps the policy's defaults. Raises UsageError on an unknown name or setting, a value that
    cannot be, or a broken plug-in.
    """
    name, settings = split_settings(text)
    found = _entry_points()
    if name not in found:
        close = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(sorted(found))}"
        raise UsageError(f"unknown KV policy {name!r}; {hint}")
    try:
        policy = found[name].load()()
        if not isinstance(policy, Policy):
            raise TypeError("it is not a kvlite.cache.policy.Policy")
        for word in ("name", "summary"):
            if not isinstance(getattr(policy, word, None), str):
                raise TypeError(f"its class has no text `{word}`")
        if policy.name != name:
            raise ValueError(f"its class has the name {policy.name!r}; give both the same")
        policy.min_slots()
    except (Interrupted, Terminated, TimeLimit):
        raise
    except Exception as error:  # whatever somebody else's code raises
        raise UsageError(f"KV policy {name!r} ({found[name].value}) cannot be loaded: {in_a_line(error)}") from error
    try:
        return replace(policy, **{setting: _read(policy, setting, value) for setting, value in settings.items()})
    except Exception as error:
        why = error if isinstance(error, UsageError) else f"KV policy {name!r}: {in_a_line(error)}"
        raise UsageError(f"{why}; its settings: {write_settings(policy.settings, ', ') or 'none'}") from error


def in_a_line(error: Exception) -> str:
    """The kind of an error, and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def _read(policy: Policy, setting: str, text: str) -> Any:
    if setting not in policy.settings:
        close = difflib.get_close_matches(setting, policy.settings, n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise UsageError(f"KV policy {policy.name!r} has no setting {setting!r}{meant}")
    try:
        return read_value(get_type_hints(type(policy))[setting], text)
    except ValueError as error:
        raise UsageError(f"KV policy {policy.name!r}: {setting} is {text!r}; expected {error}") from None


def unused_plug_ins() -> list[EntryPoint]:
    """The plug-ins whose name a built-in policy or another plug-in has, which is taken instead."""
    found = _entry_points()
    return [point for point in entry_points(group=ENTRY_POINT_GROUP) if found[point.name] != point]


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in (*entry_points(group=ENTRY_POINT_GROUP), *_BUILT_IN)}


_BUILT_IN = tuple(
    EntryPoint(name, f"kvlite.cache.policies:{member}", ENTRY_POINT_GROUP)
    for name, member in (
        ("heavy-hitter", "HeavyHitter"),
        ("replay", "Replay"),
        ("h2o", "H2O"),
        ("scissorhands", "Scissorhands"),
        ("keyformer", "Keyformer"),
        ("tova", "TOVA"),
        ("snapkv", "SnapKV"),
        ("pyramid", "Pyramid"),
        ("keydiff", "KeyDiff"),
        ("window", "Window"),
        ("full", "Full"),
    )
)


def scored(policy: Policy, candidates: Candidates) -> Tensor:
    """Score as the policy does. Raises PolicyFailed where a plug-in raises anything."""
    try:
        return policy.score(candidates)
    except Exception as error:
        if is_built_in(policy) or isinstance(error, KvliteError) or is_out_of_memory(error):
            raise
        raise PolicyFailed(f"KV policy {policy.name!r}: `score` raised {in_a_line(error)}") from error
