"""Engines in turns: what fails is left out with its reason, and the others go on."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("error", "reason"), [(RuntimeError("no kernel\nat all"), "no kernel"), (ValueError(), "ValueError")]
)
def test_an_engine_that_fails_is_left_out_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, reason: str
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    turns, peer = import_module("peers.turns"), import_module("peers.peer")

    def ask(name: str) -> object:
        if name == "bad":
            raise error
        return peer.Took(1.0, 2.0, 2, [1, 2], 0.5)

    run = turns.Run.of(1.0)
    found = turns.in_turns({"bad": "bad", "good": "good"}, ask, rounds=2, run=run, what="decode")
    assert list(found) == ["good"] and len(found["good"].rounds) == 2
    assert run.failed == {"decode: bad": reason} and run.left_out == []
    assert "Traceback" in capsys.readouterr().err
