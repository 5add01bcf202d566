"""`kvlite policies` as a user meets it."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint

import pytest

from kvlite.cli import main

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
