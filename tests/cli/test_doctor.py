"""`kvlite doctor`: what is installed, and what was found out about models."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from kvlite.cache import cache as cache_module
from kvlite.cli import main
from kvlite.models import kernel_trial, loading
from kvlite.models.kernel_trial import TrialSetting
from kvlite.record.store import RunRecords
from kvlite.record.verdicts import Verdicts
from kvlite_kernels.backend import TORCH, Backend
from kvlite_kernels.fused_ops import TORCH_OPS
from tests.program import environment


def test_without_a_model_it_tells_what_is_installed_and_loads_no_torch() -> None:
    code = "import sys; from kvlite.cli import main; main(['doctor', '--json']); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    told, _, loaded = said.stdout.rpartition("}\n")
    assert loaded.strip() == "False"
    found = json.loads(told + "}")
    assert found["environment"]["torch"] == version("torch")
    assert found["verdicts"] == found["trials"] == []


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


def test_code_of_a_models_own_is_looked_at_without_being_remembered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "demo", "--device", "cpu", "--trust-remote-code"]) == 0
    assert "model           demo, float32" in capsys.readouterr().out


def test_again_finds_out_anew_and_needs_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "demo", "--device", "cpu", "-q"]) == 0
    capsys.readouterr()
    assert main(["doctor", "demo", "--device", "cpu", "--again"]) == 0
    assert "just now" in capsys.readouterr().out
    assert main(["doctor", "--again"]) == 2
    assert "kvlite doctor demo --again" in capsys.readouterr().err


def test_a_model_that_cannot_be_had_is_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "nobody/nothing"]) == 3


@pytest.mark.parametrize(
    ("double", "said"),
    [("wrong", "wrong: attention of one query, plain: off by"), ("right", "")],
)
def test_kernels_are_tried_while_a_model_loads_and_what_came_of_it_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, double: str, said: str
) -> None:
    """As on a GPU; the process that tries is another one, and what Triton would compute is computed by torch."""
    setting = TrialSetting((sys.executable, "-m", "tests.parity.doubles", double))
    named = type("Named", (Backend,), {"name": "triton"})()
    monkeypatch.setattr(kernel_trial, "TrialSetting", lambda: setting)
    monkeypatch.setattr(kernel_trial, "may_try", lambda kernels, device: kernels == "auto")
    monkeypatch.setattr(kernel_trial, "obstacle", lambda *_: None)
    monkeypatch.setattr(cache_module, "choose_backend", lambda wanted, *_: named if wanted == "triton" else TORCH)
    monkeypatch.setattr(loading, "choose_ops", lambda *_, **__: TORCH_OPS)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    kernels = "torch" if said else "triton"
    assert main(["run", "demo", "hi", "-n", "2", "--device", "cpu", "-v"]) == 0
    told = capsys.readouterr().err
    assert "trying Triton's kernels on this device, once" in told
    assert f"kernels on slots of numbers, mass by max heard again with a bias: {kernels}: {said}" in told
    assert f"cpu ({kernels}{'' if said else ', verified, 2.0x'})" in told
    assert RunRecords().load("last").host.kernels == kernels
    assert main(["run", "demo", "hi", "-n", "1", "--device", "cpu", "--kv-budget", "100kB"]) == 0
    assert ("passes over int4, fewer tokens are kept: Triton's kernels on them" in capsys.readouterr().err) == bool(
        said
    )
    assert main(["doctor", "demo", "--device", "cpu"]) == 0
    again = capsys.readouterr()
    assert "trying" not in again.err and "kernels         modules: right, 2.00x as fast as torch" in again.out
    assert main(["doctor"]) == 0
    assert "slots of numbers, mass by max heard again with a bias, float32" in capsys.readouterr().out
