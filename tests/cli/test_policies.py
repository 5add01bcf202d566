"""`kvlite policies` as a user meets it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from kvlite.cache.policy import Candidates, Policy
from kvlite.cli import main

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


@pytest.fixture(autouse=True)
def nothing_on_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)


def test_each_policy_says_what_it_keeps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policies", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [policy["name"] for policy in found] == BUILT_IN
    assert all(policy["summary"] and policy["error"] is None for policy in found)
    settings = {policy["name"]: policy["settings"] for policy in found}
    assert settings["window"] == {"sinks": 4}
    assert settings["heavy-hitter"]["decay"] == 0.95
    assert settings["full"] == {}


def test_settings_are_listed_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policies"]) == 0
    out = capsys.readouterr().out
    assert "\nwindow        sinks=4\n" in out
    assert "\nsnapkv        sinks=0, decay=1.0, observed=32, heads=mean, pooled=5\n" in out


def test_a_broken_plug_in_does_not_hide_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = EntryPoint("broken", "nowhere.at_all:Policy", "kvlite.policies")
    monkeypatch.setattr("kvlite.cache.policy.entry_points", lambda **_: [broken])
    assert main(["policies"]) == 0
    _, first, *others = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert first.split()[:2] == ["broken", "broken:"]
    assert "nowhere" in first
    assert [line.split()[0] for line in others] == BUILT_IN
    assert main(["policies", "--json"]) == 0
    assert "nowhere" in json.loads(capsys.readouterr().out)[0]["error"]


@dataclass(frozen=True, slots=True)
class Nameless(Policy):
    """Forgets its name and what it does."""

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.pos.float()


@dataclass(frozen=True, slots=True)
class Whole(Policy):
    """Gives whole numbers as scores."""

    name: ClassVar[str] = "whole"
    summary: ClassVar[str] = "whole numbers"

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.pos


@dataclass(frozen=True, slots=True)
class Weary(Policy):
    """Breaks down when a conversation gets long."""

    name: ClassVar[str] = "weary"
    summary: ClassVar[str] = "the newest, for a while"

    def score(self, candidates: Candidates) -> Tensor:
        if candidates.next_pos.max() > 300:
            raise ZeroDivisionError("tired")
        return candidates.pos.float()


def install(monkeypatch: pytest.MonkeyPatch, name: str, target: str) -> None:
    point = EntryPoint(name, target, "kvlite.policies")
    monkeypatch.setattr("kvlite.cache.policy.entry_points", lambda **_: [point])


@pytest.fixture
def misspelt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    (tmp_path / "misspelt_policy.py").write_text("class Nothing(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "misspelt_policy:Nothing"


@pytest.mark.parametrize("target", ["misspelt", f"{__name__}:Nameless"])
def test_a_plug_in_that_cannot_be_used_is_listed_as_broken_and_refused_by_name(
    target: str, misspelt: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, why = (misspelt, "SyntaxError: ") if target == "misspelt" else (target, "no text `name`")
    install(monkeypatch, "other", target)
    assert main(["policies"]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.partition("\n\n")[0].splitlines()[1:]}
    assert sorted(listed) == sorted([*BUILT_IN, "other"])
    assert "broken: KV policy 'other'" in listed["other"]
    assert main(["run", "demo", "hi", "--kv-policy", "other"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"'other' ({target})" in line and why in line


def test_scores_that_are_none_end_a_run_before_it_begins(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "whole", f"{__name__}:Whole")
    assert main(["run", "demo", "hi", "--kv-policy", "whole"]) == 2
    out, err = capsys.readouterr()
    assert not out and "KV policy 'whole': `score` gave torch.int32" in err


def test_a_plug_in_with_a_built_in_name_is_never_used_and_that_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "window", f"{__name__}:Whole")
    assert main(["policies", "-q"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == BUILT_IN
    assert "warning" in err and f"'window' of {__name__}:Whole is never used" in err


def test_a_line_at_which_a_policy_fails_has_a_record_and_the_batch_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, "weary", f"{__name__}:Weary")
    prompts = tmp_path / "in.jsonl"
    long = "How are you today? " * 100
    prompts.write_text("".join(f"{json.dumps(text)}\n" for text in ["Hi", long, "What is your name?", "Good day"]))
    given = ["--kv-policy", "weary", "--kv-per-seq", "64tok", "--max-tokens", "8", "--batch-size", "4", "--ordered"]
    assert main(["batch", "-m", "demo", str(prompts), *given]) == 5
    out, err = capsys.readouterr()
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["error"] is None for record in records] == [True, False, True, True]
    assert records[1]["error"]["code"] == "internal_error"
    assert records[1]["error"]["message"] == "KV policy 'weary': `score` raised ZeroDivisionError: tired"
    assert "unexpected" not in err


def test_sinks_that_have_no_room_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for sinks, budget in ((100_000, "100kB"), (1_000, "100kB")):
        assert main(["run", "demo", "hi", "--kv-policy", f"window:sinks={sinks}", "--kv-budget", budget]) == 4
        assert f"lower sinks={sinks}" in capsys.readouterr().err
    assert main(["run", "demo", "hi", "--kv-policy", "window", "--kv-budget", "3tok"]) == 4
    assert "lower" not in capsys.readouterr().err
