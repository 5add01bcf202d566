"""`kvlite bench` on the built-in model."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from kvlite.cli import main
from kvlite.engine.decode_graphs import GraphRecorder
from kvlite.record.store import RunRecords
from kvlite.speed import roofline

SMALL = ["bench", "--prompt", "8", "--context", "20,1k", "--drift", "1k,1M", "--steps", "3", "--rounds", "2"]


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline._COPY_BYTES, "cpu", 2**16)
    monkeypatch.setitem(roofline._SIDE, "cpu", 16)


def test_json_has_every_figure_and_they_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "demo", "--kv-budget", "64tok", "--device", "cpu", "--seed", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["model"], found["slots"], found["protocol"]["seed"]) == (
        "kvlite.bench/1",
        "demo",
        64,
        3,
    )
    stages = found["startup"]["stages_s"]
    assert {
        "imports",
        "tokenizer",
        "weights",
        "gate",
        "fusing",
        "files, plan and cache",
        "first token",
    } <= stages.keys()
    assert found["startup"]["total_s"] == pytest.approx(sum(stages.values()))
    assert [(point["tokens_seen"], point["slots_live"]) for point in found["decoding"]] == [(20, 20), (1000, 63)]
    assert [point["tokens_seen"] for point in found["drift"]["points"]] == [1000, 1_000_000]
    for point in (*found["decoding"], *found["drift"]["points"]):
        assert point["share_of_copy"] == pytest.approx(point["bytes_s"] / found["ceilings"]["copy_bytes_s"])
        assert point["read_bytes"] > found["weights_read_bytes"]
    memory = found["memory"]
    assert memory["predicted_bytes"]["kv"] == memory["measured_bytes"]["kv"]
    assert memory["peak_bytes"].keys() == {"load", "prefill", "decode"}
    assert found["step"] == "eager" and "step" not in memory["measured_bytes"]
    record = RunRecords().load("last")
    assert record.kv is not None and record.model is not None
    assert (record.command, record.exit_code, record.model.alias, record.kv.capacity_tokens) == ("bench", 0, "demo", 64)
    assert record.kv.within_budget and record.timeline
    assert {term.name: term.measured_bytes for term in record.memory.terms if term.measured_bytes is not None} == (
        memory["measured_bytes"]
    )


@pytest.mark.parametrize("obstacle", [None, "no graph today"])
def test_how_decoding_ran_is_in_the_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, obstacle: str | None
) -> None:
    class Recorder(GraphRecorder):
        def record(self, body: Callable[[], None]) -> Callable[[], None]:
            if obstacle is not None:
                raise RuntimeError(obstacle)
            return super().record(body)

    monkeypatch.setattr("kvlite.engine.decode_graphs.wants_graphs", lambda asked, _: bool(asked))
    monkeypatch.setattr("kvlite.engine.decode_graphs.CudaGraphs", lambda *_: Recorder())
    asked = [*SMALL, "demo", "--kv-budget", "64tok", "--device", "cpu", "--capture"]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert ("step" in found["memory"]["measured_bytes"]) == (obstacle is None)
    assert found["step"].startswith("captured" if obstacle is None else "eager: ")
    assert found["step"].endswith(obstacle or "captured")
    assert main(asked) == 0
    captured = capsys.readouterr()
    assert f"(torch, {'captured' if obstacle is None else 'eager'} steps)" in captured.out.splitlines()[0]
    assert captured.err.count("warning: --capture: ") == (obstacle is not None)


def test_without_json_there_are_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "demo", "--kv-budget", "64tok", "--on-full", "stop"]) == 0
    captured = capsys.readouterr()
    titles = [line.split("  ")[0] for line in captured.out.splitlines() if line[:2].isupper()]
    assert titles == ["START-UP", "PROMPT", "DECODING AFTER", "MEMORY"]
    assert "left out: drift 1,000, 1,000,000: a conversation ends after 64 tokens here" in captured.err


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--prompt", "0"], 2),
        (["--context", "1k,,2k"], 2),
        (["--drift", "many"], 2),
        (["--kv-budget", "2tok"], 4),
        (["--device", "cuda:99"], 2),
        (["--device", "cpu", "--capture"], 2),
        (["no-such-model", "--offline"], 3),
    ],
    ids=lambda value: str(value),
)
def test_bad_input_is_one_line(args: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *(args if args[0][0] != "-" else ["demo", *args])]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len([line for line in captured.err.splitlines() if line.startswith("kvlite: ")]) == 1
