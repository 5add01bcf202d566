"""Finding a policy by name, and how small a cache it can work with."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, ClassVar

import pytest

from kvlite.cache import policy as seam
from kvlite.cache.policies.h2o import H2O
from kvlite.cache.policies.heavy_hitter import HeavyHitter
from kvlite.cache.policies.window import Window
from kvlite.cache.policy import DEFAULT_POLICY, Candidates, Policy, load_policy, policy_names
from kvlite.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

BUILT_IN = [
    "full",
    "h2o",
    "heavy-hitter",
    "keydiff",
    "keyformer",
    "pyramid",
    "scissorhands",
    "snapkv",
    "tova",
    "window",
]
STATELESS = {"full", "keydiff", "window"}


@dataclass(frozen=True, slots=True)
class Oldest(Policy):
    """Somebody else's policy: the oldest stay."""

    name: ClassVar[str] = "oldest"
    summary: ClassVar[str] = "the oldest stay"

    def recent(self, slots: int) -> int:
        return 2

    def score(self, candidates: Candidates) -> Tensor:
        return -candidates.pos.float()


class Unfinished(Policy):
    """Forgets to score."""

    def recent(self, slots: int) -> int:
        return 1


class NoPolicy:
    """Something else altogether."""


def install(monkeypatch: pytest.MonkeyPatch, name: str, target: str) -> None:
    """As if a package had registered `target` under the entry-point group."""
    point = EntryPoint(name, f"{__name__}:{target}" if ":" not in target else target, "kvlite.policies")
    installed = {"kvlite.policies": (point,)}
    monkeypatch.setattr(seam, "entry_points", lambda *, group: installed.get(group, ()))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_policy_is_found_by_the_name_it_gives_itself(name: str) -> None:
    policy = load_policy(name)
    assert policy.name == name
    assert policy.summary
    assert policy.evicts == (name != "full")
    assert policy.state_bytes_per_slot == (0 if name in STATELESS else 4)


def test_names_are_listed_in_order_and_the_default_is_one_of_them() -> None:
    assert policy_names() == BUILT_IN
    assert DEFAULT_POLICY in BUILT_IN


def test_an_unknown_name_suggests_a_close_one() -> None:
    with pytest.raises(UsageError, match=r"^unknown KV policy 'heavy-hiter'; did you mean 'heavy-hitter'\?$"):
        load_policy("heavy-hiter")


def test_a_name_close_to_nothing_lists_them_all() -> None:
    every = ", ".join(BUILT_IN)
    with pytest.raises(UsageError, match=f"^unknown KV policy 'x'; choose one of {every}$"):
        load_policy("x")


def test_a_third_party_policy_comes_through_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "oldest", "Oldest")
    assert policy_names() == sorted([*BUILT_IN, "oldest"])
    assert load_policy("oldest").recent(10) == 2


def test_a_third_party_policy_cannot_take_a_built_in_name(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "h2o", "Oldest")
    assert isinstance(load_policy("h2o"), H2O)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_module_at_all:Policy", "cannot be loaded: No module named"),
        ("Missing", "cannot be loaded: module .* has no attribute 'Missing'"),
        ("Unfinished", "cannot be loaded: Can't instantiate abstract class Unfinished"),
        ("NoPolicy", "is not a kvlite.cache.policy.Policy"),
    ],
)
def test_a_broken_plug_in_is_named(monkeypatch: pytest.MonkeyPatch, target: str, reason: str) -> None:
    install(monkeypatch, "broken", target)
    with pytest.raises(UsageError, match=rf"^KV policy 'broken' \(.*\) {reason}"):
        load_policy("broken")


@pytest.mark.parametrize("pinned", [0, 3, 4, 5, 40])
@pytest.mark.parametrize(
    "policy", [HeavyHitter(), HeavyHitter(sinks=0, grace=9), H2O(), H2O(sinks=2), Oldest(), Window()]
)
def test_min_slots_is_the_least_that_leaves_one_victim(policy: Policy, pinned: int) -> None:
    def leaves_one(slots: int) -> bool:
        return policy.sinks + pinned + policy.recent(slots) < slots

    least = policy.min_slots(pinned)
    assert leaves_one(least)
    assert not any(leaves_one(slots) for slots in range(1, least))


def test_the_window_policy_needs_its_sinks_a_victim_and_the_newest() -> None:
    assert Window().min_slots() == 6
    assert Window(sinks=0).min_slots() == 2


@pytest.mark.parametrize("name", BUILT_IN)
def test_at_least_the_newest_token_is_recent(name: str) -> None:
    assert all(load_policy(name).recent(slots) >= 1 for slots in range(1, 50))
