"""Finding a policy by name, and how small a cache it can work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, ClassVar, Literal

import pytest
import torch

from kvlite.cache import policy as seam
from kvlite.cache.policies import H2O, TOVA, HeavyHitter, Keyformer, Pyramid, SnapKV, Window
from kvlite.cache.policy import DEFAULT_POLICY, Candidates, Policy, PolicyFailed, load_policy, policy_names
from kvlite.cache.policy_text import split_policies, write_settings
from kvlite.errors import TimeLimit, UsageError
from tests.cache.driving import (
    Driver,
    as_stored,
    attention_layer,
    make_cache,
    model_shape,
    positions,
    random_streams,
)

if TYPE_CHECKING:
    from torch import Tensor

BUILT_IN = [
    "full",
    "h2o",
    "heavy-hitter",
    "keydiff",
    "keyformer",
    "pyramid",
    "replay",
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


class NoPolicy:
    """Something else altogether."""


@dataclass(frozen=True, slots=True)
class Silent(Policy):
    """Says nothing of itself."""

    name: ClassVar[str] = "broken"

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.pos.float()


@dataclass(frozen=True, slots=True)
class Nameless(Policy):
    """Has no name."""

    summary: ClassVar[str] = "some"

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.pos.float()


class Raising(Silent):
    """Cannot be made."""

    def __init__(self) -> None:
        raise ZeroDivisionError


class Slow(Silent):
    """Is still being made when the time is over."""

    def __init__(self) -> None:
        raise TimeLimit("over")


class NothingRecent(Silent):
    """Would evict the token that has just come."""

    summary: ClassVar[str] = "some"

    def recent(self, slots: int) -> int:
        return 0


class HalfRecent(NothingRecent):
    """Counts in halves."""

    def recent(self, slots: int) -> float:  # type: ignore[override]
        return 2.5


@dataclass(frozen=True, slots=True)
class Picky(Silent):
    """Takes few sinks."""

    name: ClassVar[str] = "picky"
    summary: ClassVar[str] = "few"

    def __post_init__(self) -> None:
        if self.sinks > 8:
            raise ValueError("too many")


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
    assert policy.state_bytes_per_slot == (0 if name in STATELESS else 6 if name == "replay" else 4)


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
        ("no_such_module_at_all:Policy", "ModuleNotFoundError: No module named"),
        ("Missing", "AttributeError: module .* has no attribute 'Missing'"),
        ("Unfinished", "TypeError: Can't instantiate abstract class Unfinished"),
        ("NoPolicy", "TypeError: it is not a kvlite.cache.policy.Policy$"),
        ("Nameless", "TypeError: its class has no text `name`$"),
        ("Silent", "TypeError: its class has no text `summary`$"),
        ("Raising", "ZeroDivisionError$"),
        ("Oldest", "ValueError: its class has the name 'oldest'; give both the same$"),
        ("NothingRecent", r"UsageError: KV policy 'broken': `recent` gave 0, not a whole number from 1 on$"),
        ("HalfRecent", r"UsageError: KV policy 'broken': `recent` gave 2\.5, not a whole number from 1 on$"),
    ],
)
def test_a_broken_plug_in_is_named(monkeypatch: pytest.MonkeyPatch, target: str, reason: str) -> None:
    install(monkeypatch, "broken", target)
    with pytest.raises(UsageError, match=rf"^KV policy 'broken' \(.*{target}\) cannot be loaded: {reason}"):
        load_policy("broken")


def test_the_end_of_the_time_while_a_plug_in_is_loaded_is_not_put_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "broken", "Slow")
    with pytest.raises(TimeLimit):
        load_policy("broken")


def test_a_plug_in_that_raises_over_a_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "picky", "Picky")
    with pytest.raises(UsageError, match=r"^KV policy 'picky': ValueError: too many; its settings: sinks=4$"):
        load_policy("picky:sinks=9")


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8", "k6v4", "int4"])
@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda found: None, "gave NoneType, not a float for each of [1, 2, 9]"),
        (lambda found: found.pos, "gave torch.int32 [1, 2, 9], not a float"),
        (lambda found: found.keys, ", 8], not a float for each of [1, 2, 9]"),
        (lambda found: found.pos.float()[:, :, :1], "gave torch.float32 [1, 2, 1], not a float"),
        (lambda found: found.pos.float().mean(0, keepdim=True), ", not a float for each of [2, 1, 2, 9]"),
        (lambda found: found.pos * float("nan"), "gave NaN"),
        (lambda found: 1 // 0, "raised ZeroDivisionError: "),
        (lambda found: found.queries, "raised LookupError: the policy looks at queries; set `needs_queries = True`"),
        (lambda found: found.statistic, "raised LookupError: the policy looks at a statistic and declares none"),
    ],
)
def test_scores_that_are_none_are_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, score: Callable[[Candidates], object], said: str, stored: str
) -> None:
    monkeypatch.setattr(Oldest, "score", lambda self, candidates: score(candidates))
    with pytest.raises(UsageError) as refused:
        make_cache(model_shape(attention_layer(2, 8)), 8, Oldest(), dtype=stored)
    assert str(refused.value).startswith("KV policy 'oldest': `score` ") and said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_a_policy_says_of_protected_tokens_may_be_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(self: Oldest, candidates: Candidates) -> Tensor:
        age = candidates.next_pos - 1 - candidates.pos
        return age / age  # NaN for the newest

    monkeypatch.setattr(Oldest, "score", score)
    make_cache(model_shape(attention_layer(2, 8)), 8, Oldest())


def test_a_policy_that_raises_in_a_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = model_shape(attention_layer(1, 8))
    driver = Driver(make_cache(shape, 8, Oldest()), [random_streams(shape, 1, 30, 0)])
    driver.feed([8])
    monkeypatch.setattr(Oldest, "score", lambda self, candidates: 1 // 0)
    with pytest.raises(PolicyFailed, match=r"^KV policy 'oldest': `score` raised ZeroDivisionError: "):
        driver.feed([1])


def test_memory_that_is_refused_is_not_put_on_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(self: Oldest, candidates: Candidates) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Oldest, "score", score)
    with pytest.raises(torch.OutOfMemoryError):
        make_cache(model_shape(attention_layer(2, 8)), 8, Oldest())


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


def test_settings_overrule_the_defaults_of_a_policy_found_by_name() -> None:
    loaded = load_policy("heavy-hitter:decay=0.99,heads=max,recent_share=0.5,grace=8")
    assert loaded == HeavyHitter(decay=0.99, heads="max", recent_share=0.5, grace=8)
    assert load_policy("heavy-hitter") == HeavyHitter()


@pytest.mark.parametrize(
    ("text", "policy", "written"),
    [
        ("window", Window(), "window"),
        ("window:sinks=8", Window(sinks=8), "window:sinks=8"),
        ("window:sinks=4", Window(), "window"),
        (" window : sinks = 8 ", Window(sinks=8), "window:sinks=8"),
        ("heavy-hitter:pooled=5,decay=1", HeavyHitter(decay=1.0, pooled=5), "heavy-hitter:decay=1.0,pooled=5"),
        ("snapkv:observed=16", SnapKV(observed=16), "snapkv:observed=16"),
        ("tova:observed=none", TOVA(observed=None), "tova:observed=none"),
        ("h2o:heads=max", H2O(heads="max"), "h2o:heads=max"),
        ("keyformer:seed=3", Keyformer(seed=3), "keyformer:seed=3"),
    ],
)
def test_a_policy_is_read_with_its_settings_and_written_as_it_is_read(text: str, policy: Policy, written: str) -> None:
    assert load_policy(text) == policy
    assert str(policy) == written
    assert load_policy(written) == policy


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_setting_can_be_written_and_read(name: str) -> None:
    settings = load_policy(name).settings
    assert load_policy(f"{name}:{write_settings(settings)}" if settings else name) == load_policy(name)
    for setting, value in settings.items():
        if isinstance(value, int) and not isinstance(value, bool):
            other = load_policy(f"{name}:{setting}={value + 2}")
            assert str(other) == f"{name}:{setting}={value + 2}"


def test_a_policy_without_a_statistic_has_no_settings_of_one() -> None:
    assert load_policy("window").settings == {"sinks": 4}
    assert load_policy("keydiff").settings == {"sinks": 0}
    assert load_policy("full").settings == {}


@dataclass(frozen=True, slots=True)
class Tuned(Oldest):
    """Somebody else's, with settings of every kind."""

    name: ClassVar[str] = "tuned"

    by: Literal["age", "use"] = "age"
    is_strict: bool = False
    label: str = "plain"
    share: float | None = None
    weights: tuple[float, ...] = ()


def test_settings_of_a_third_party_are_read_by_the_types_of_its_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "tuned", "Tuned")
    read = load_policy("tuned:by=use,is_strict=true,label=a b,share=0.5")
    assert read == Tuned(by="use", is_strict=True, label="a b", share=0.5)
    assert load_policy(str(read)) == read
    with pytest.raises(UsageError, match="share is 'half'; expected a number or none; its settings: sinks=4, by=age,"):
        load_policy("tuned:share=half")
    with pytest.raises(UsageError, match="is_strict is 'yes'; expected true or false"):
        load_policy("tuned:is_strict=yes")
    with pytest.raises(UsageError, match="weights is '1'; expected a value that only Python can give"):
        load_policy("tuned:weights=1")


HITTERS = "; its settings: sinks=4, decay=0.95, observed=none, heads=mean, "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("heavy-hitter:decya=0.9", f"KV policy 'heavy-hitter' has no setting 'decya' (did you mean 'decay'?){HITTERS}"),
        ("heavy-hitter:beta=1", f"KV policy 'heavy-hitter' has no setting 'beta'{HITTERS}"),
        ("heavy-hitter:decay=fast", f"KV policy 'heavy-hitter': decay is 'fast'; expected a number{HITTERS}"),
        ("heavy-hitter:decay=nan", f"KV policy 'heavy-hitter': decay is 'nan'; expected a number{HITTERS}"),
        ("heavy-hitter:pooled=2.5", f"KV policy 'heavy-hitter': pooled is '2.5'; expected a whole number{HITTERS}"),
        ("heavy-hitter:decay=2", "KV policy 'heavy-hitter': decay is 2.0; expected more than 0 and at most 1; its set"),
        ("h2o:heads=median", "KV policy 'h2o': heads is 'median'; expected one of mean, max, layer; its settings: "),
        ("h2o:observed=all", "KV policy 'h2o': observed is 'all'; expected a whole number or none; its settings: "),
        ("window:decay=0.9", "KV policy 'window' has no setting 'decay'; its settings: sinks=4"),
        ("full:sinks=4", "KV policy 'full' has no setting 'sinks'; its settings: none"),
        ("window:", "KV policy 'window': '' is no setting=value, as in window:sinks=8"),
        ("window:sinks", "KV policy 'window': 'sinks' is no setting=value"),
        ("window:sinks=", "KV policy 'window': 'sinks=' is no setting=value"),
        ("window:sinks=8,", "KV policy 'window': '' is no setting=value"),
        ("window:sinks=8,sinks=9", "KV policy 'window': sinks is given twice; leave out one of them"),
        ("sinks=8", "KV policy 'sinks=8' has settings and no name; give both, as in window:sinks=8"),
        (":sinks=8", "unknown KV policy ''; choose one of "),
        ("windo:sinks=8", "unknown KV policy 'windo'; did you mean 'window'?"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        load_policy(text)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("h2o:sinks=-1", r"^KV policy 'h2o': sinks is -1; expected 0 to 1,048,576; its settings: "),
        ("h2o:sinks=1000000000", r"sinks is 1000000000; expected 0 to 1,048,576"),
        ("heavy-hitter:pooled=200001", r"pooled is 200001; expected an odd number of positions up to 101"),
        ("scissorhands:newest=0", r"newest is 0; expected 1 or more"),
        ("h2o:decay=0.0", "decay is 0.0"),
        ("tova:observed=0", "observed is 0"),
        ("snapkv:observed=none", "observed is None"),
        ("snapkv:pooled=4", "pooled is 4; expected an odd number"),
        ("keyformer:ramp=0", "ramp is 0"),
        ("pyramid:beta=0", "beta is 0"),
        ("heavy-hitter:recent_share=1.0", "recent_share is 1.0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_policy(text)


@dataclass(frozen=True, slots=True)
class Knorm(Policy):
    """Keep the tokens whose keys are short: KnormPress (https://arxiv.org/abs/2406.11430), as a plug-in writes it."""

    name: ClassVar[str] = "knorm"
    summary: ClassVar[str] = "the tokens with the shortest keys"

    def score(self, candidates: Candidates) -> Tensor:
        return -candidates.keys.norm(dim=-1)


@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_a_plug_in_of_ten_lines_keeps_the_shortest_keys(monkeypatch: pytest.MonkeyPatch, stored: str) -> None:
    install(monkeypatch, "knorm", "Knorm")
    shape = model_shape(attention_layer(2, 8), attention_layer(2, 8))
    streams = random_streams(shape, 1, 40, 0)
    driver = Driver(make_cache(shape, 12, load_policy("knorm"), dtype=stored), [streams])
    for count in (7, 9, *[1] * 24):
        driver.feed([count])
    for index, part in enumerate(driver.cache.parts):
        norms = as_stored(streams[index], stored).k.norm(dim=-1)
        for head, held in enumerate(positions(part)):
            shortest = norms[head, 4:39].argsort()[:7] + 4  # four sinks and the newest stay whatever their keys
            assert held == {0, 1, 2, 3, 39, *shortest.tolist()}


@dataclass(frozen=True, slots=True)
class Asked(Oldest):
    """Keep the tokens whose keys are nearest to the newest query of each KV head."""

    needs_queries: ClassVar[bool] = True

    def score(self, candidates: Candidates) -> Tensor:
        batch, kv_heads, _, dim = candidates.keys.shape
        newest = candidates.queries[:, :, -1].view(batch, kv_heads, -1, dim).mean(2)
        return (candidates.keys @ newest[..., None])[..., 0]


def test_a_policy_may_look_at_queries_and_values() -> None:
    shape = model_shape(attention_layer(2, 8))
    streams = random_streams(shape, 3, 30, 0)
    driver = Driver(make_cache(shape, 10, Asked()), [streams])
    for count in (6, 8, *[1] * 10):
        before = positions(driver.cache.layers[0])
        driver.feed([count])
    pos = torch.tensor([[sorted(held | {23}) for held in before]])
    keys = torch.stack([streams[0].k[head, pos[0, head]] for head in range(2)])[None]
    query = streams[0].q[None, :, 23:24]
    score = Asked().score(Candidates(pos, torch.tensor([[[24]]]), None, ((keys, keys),), query))
    score = score.masked_fill((pos < 4) | (pos >= 22), torch.inf)
    victims = pos.gather(-1, score.argmin(-1, keepdim=True))[0, :, 0].tolist()
    expected = [(held | {23}) - {victim} for held, victim in zip(before, victims, strict=True)]
    assert positions(driver.cache.layers[0]) == expected


@pytest.mark.parametrize(
    ("text", "policies"),
    [
        ("window", ["window"]),
        ("window,h2o", ["window", "h2o"]),
        ("h2o,window:sinks=8", ["h2o", "window:sinks=8"]),
        ("window:sinks=8,h2o", ["window:sinks=8", "h2o"]),
        (
            "heavy-hitter:decay=0.9,pooled=5,h2o:sinks=2,window",
            ["heavy-hitter:decay=0.9,pooled=5", "h2o:sinks=2", "window"],
        ),
        ("window:sinks=8,window:sinks=16", ["window:sinks=8", "window:sinks=16"]),
        ("h2o,decay=0.9", ["h2o", "decay=0.9"]),  # refused when it is read: h2o has no settings to go on with
        ("window,,h2o", ["window", "", "h2o"]),
    ],
)
def test_a_list_of_policies_is_split_between_them_and_not_inside_their_settings(text: str, policies: list[str]) -> None:
    assert split_policies(text) == policies


def test_neighbours_are_positions_that_are_held_wherever_their_slots_are() -> None:
    pos = torch.tensor([[[7, -1, 0, 1, 20, 9, 2, -1]]])
    known = torch.tensor([[[1.0, 9.0, 3.0, 0.0, 5.0, 4.0, 6.0, 9.0]]])
    score = SnapKV(pooled=5).score(Candidates(pos, torch.tensor([[[21]]]), known, ()))
    kept = score[pos >= 0].tolist()
    assert kept == pytest.approx([2.5, 3.0, 3.0, 5.0, 2.5, 3.0])


@pytest.mark.parametrize("most", [2**31, 90])
@pytest.mark.parametrize("layers", [1, 2, 7, 32])
def test_a_pyramid_never_gives_a_layer_less_for_more_and_ends_equal(layers: int, most: int) -> None:
    rule = Pyramid(observed=8, beta=5).layer_slots
    before = [0] * layers
    for slots in range(1, 91):
        shares = [rule(slots, most, depth, layers) for depth in range(layers)]
        assert all(1 <= old <= new for old, new in zip((max(1, n) for n in before), shares, strict=True))
        assert all(share <= most for share in shares)
        before = shares
    assert most != 90 or set(before) == {90}
