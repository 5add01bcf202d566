"""`kvlite doctor`: what is installed, and what was found out about models."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from kvlite.cli import main
from kvlite.record.verdicts import Verdicts
from tests.program import environment


def test_without_a_model_it_tells_what_is_installed_and_loads_no_torch() -> None:
    code = "import sys; from kvlite.cli import main; main(['doctor', '--json']); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    told, _, loaded = said.stdout.rpartition("}\n")
    assert loaded.strip() == "False"
    found = json.loads(told + "}")
    assert found["environment"]["torch"] == version("torch")
    assert found["verdicts"] == []


def test_with_a_model_it_tells_and_keeps_what_becomes_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "demo", "--device", "cpu", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["verdicts"]
    assert told["about"]["dtype"] == "float32"
    assert "norm" in told["fused"]
    assert set(told["effects"]) == {"int8", "k6v4", "int4"}
    ((about, kept),) = Verdicts().known()
    assert (about["model"], [*kept.effects]) == (told["about"]["model"], [*told["effects"]])
    assert main(["doctor"]) == 0
    assert about["model"] in capsys.readouterr().out
    assert main(["doctor", "demo", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"found           {kept.when}" in said
    assert "int4 slots" in said


def test_again_finds_out_anew_and_needs_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "demo", "--device", "cpu", "-q"]) == 0
    capsys.readouterr()
    assert main(["doctor", "demo", "--device", "cpu", "--again"]) == 0
    assert "just now" in capsys.readouterr().out
    assert main(["doctor", "--again"]) == 2
    assert "kvlite doctor demo --again" in capsys.readouterr().err


def test_a_model_that_cannot_be_had_is_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "nobody/nothing"]) == 3
