"""What a run's record says after it, and that keeping one never fails the run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvlite.errors import ContextFull, Terminated, UsageError
from kvlite.memory.counts import KVCounts
from kvlite.record.measure import DeviceReading
from kvlite.record.recorder import MAX_REQUESTS, RunRecorder
from kvlite.record.schema import BatchReport, LayerKept, ModelIdentity, RequestReport, RunRecord, TorchMemory
from kvlite.record.store import RunRecords, read_record

BUDGET = 1000


def counts(*, live: int = 0, peak: int = 0, reserved: int = 990, budget: int = BUDGET, seen: int = 0) -> KVCounts:
    kept = min(seen, 10)
    return KVCounts(budget, reserved, live, peak, seen, kept, seen - kept, "heavy-hitter", "float32")


def describe(recorder: RunRecorder, first: KVCounts) -> None:
    recorder.cache(first, source="flag", bytes_per_token=8, capacity_tokens=100, policy_state_bytes=40)


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[[Callable[[RunRecorder], None]], RunRecord]:
    def record(use: Callable[[RunRecorder], None]) -> RunRecord:
        path = tmp_path / "record.json"
        with RunRecorder("run", ["run", "demo"], report=str(path)) as recorder:
            use(recorder)
        return read_record(path)

    return record


Recorded = Callable[[Callable[[RunRecorder], None]], RunRecord]


def test_the_record_holds_what_was_said(recorded: Recorded) -> None:
    def use(recorder: RunRecorder) -> None:
        recorder.model(ModelIdentity(alias="demo", dtype="float32"))
        recorder.host(device="cpu", kernels="torch")
        describe(recorder, counts())
        recorder.plan({"weights": 50, "kv": 900})
        recorder.phase("prefill", 70)
        recorder.phase("prefill", 60)
        recorder.sample(5, 400, 500)
        recorder.request(RequestReport(id="a", prompt_tokens=3, tok_s=9.5), counts(seen=5))
        recorder.measured({"weights": 51, "kv": 900})
        recorder.counts(counts(live=400, peak=450, seen=25), full_cache_bytes=2000)
        recorder.warning("careful")

    record = recorded(use)
    kv = record.kv
    assert kv is not None
    assert (kv.budget_source, kv.live_bytes, kv.peak_bytes, kv.allocated_unused_bytes) == ("flag", 400, 450, 540)
    assert (kv.tokens_seen, kv.tokens_kept, kv.tokens_evicted, kv.full_cache_bytes) == (25, 10, 15, 2000)
    assert kv.within_budget
    assert [(t.name, t.predicted_bytes, t.measured_bytes) for t in record.memory.terms] == [
        ("weights", 50, 51),
        ("kv", 900, 900),
    ]
    assert [(phase.name, phase.peak_bytes) for phase in record.memory.phases] == [("prefill", 70)]
    assert record.memory.host_rss_peak_bytes
    assert record.timeline[0].kv_bytes == 400
    assert (record.warnings, record.argv, record.exit_code) == (["careful"], ["run", "demo"], 0)
    assert record.host.kernels == "torch"
    assert record.timeline[0].allocated_bytes == 500
    assert record.model == ModelIdentity(alias="demo", dtype="float32")


@pytest.mark.parametrize(
    ("passing", "holds"),
    [
        (counts(peak=1000, reserved=1000), True),
        (counts(peak=1001), False),
        (counts(peak=10, reserved=1001), False),
    ],
)
def test_within_budget_is_computed_from_peak_and_reserved(recorded: Recorded, passing: KVCounts, holds: bool) -> None:
    def use(recorder: RunRecorder) -> None:
        describe(recorder, counts())
        recorder.counts(passing)

    record = recorded(use)
    assert record.kv is not None
    assert record.kv.within_budget is holds


def test_one_sample_above_the_budget_is_enough_to_have_passed_it(recorded: Recorded) -> None:
    def use(recorder: RunRecorder) -> None:
        describe(recorder, counts())
        recorder.sample(1, BUDGET + 1)
        recorder.counts(counts(peak=10))

    record = recorded(use)
    assert record.kv is not None
    assert not record.kv.within_budget
    assert record.kv.peak_bytes == BUDGET + 1


def test_a_smaller_budget_in_mid_chat_is_not_held_against_the_earlier_peak(recorded: Recorded) -> None:
    def use(recorder: RunRecorder) -> None:
        describe(recorder, counts())
        recorder.counts(counts(peak=900))
        describe(recorder, counts(reserved=400, budget=500))
        recorder.counts(counts(peak=300, reserved=400, budget=500))

    record = recorded(use)
    assert record.kv is not None
    assert record.kv.within_budget
    assert record.kv.budget_bytes == 500


def test_a_larger_budget_does_not_excuse_having_passed_the_earlier_one(recorded: Recorded) -> None:
    def use(recorder: RunRecorder) -> None:
        describe(recorder, counts())
        recorder.counts(counts(peak=1001))
        describe(recorder, counts(budget=9000))

    record = recorded(use)
    assert record.kv is not None
    assert not record.kv.within_budget


def test_a_batch_sums_tokens_over_its_answers_and_keeps_the_first_1000(recorded: Recorded) -> None:
    def use(recorder: RunRecorder) -> None:
        describe(recorder, counts())
        for number in range(MAX_REQUESTS + 5):
            recorder.request(RequestReport(id=str(number)), counts(seen=12))
        recorder.batch(BatchReport(total=MAX_REQUESTS + 5))
        recorder.counts(counts(seen=12))

    record = recorded(use)
    assert record.kv is not None
    assert (record.kv.tokens_seen, record.kv.tokens_kept, record.kv.tokens_evicted) == (12_060, 10_050, 2_010)
    assert (len(record.requests), record.requests_left_out) == (MAX_REQUESTS, 5)


def test_the_device_adds_up(recorded: Recorded) -> None:
    def use(recorder: RunRecorder) -> None:
        recorder.host(device="cuda", cuda="13.0")
        recorder.measured(
            {"weights": 300, "kv": 100, "checkpoints": 10**6},
            torch=TorchMemory(allocated_peak_bytes=410, reserved_peak_bytes=450),
            device=DeviceReading("H200", "570", 1000, 200, 500),
        )

    record = recorded(use)
    device = record.memory.device
    assert device is not None
    assert device.unaccounted_bytes == 100
    assert device.other_processes_bytes == 300
    measured = record.memory.measured_on_device
    assert device.total_bytes == device.free_bytes + 300 + measured + 100
    assert (record.host.gpu, record.host.driver, record.host.gpu_total_bytes) == ("H200", "570", 1000)


def test_per_layer_counts_are_kept(recorded: Recorded) -> None:
    def use(recorder: RunRecorder) -> None:
        describe(recorder, counts())
        recorder.layers([LayerKept(layer=0, kept=7.5, bytes=60)])

    record = recorded(use)
    assert record.kv is not None
    assert record.kv.per_layer == [LayerKept(layer=0, kept=7.5, bytes=60)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ContextFull("full"), 4),
        (Terminated("terminated"), 143),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 0),
        (MemoryError(), 4),
        (ValueError("bug"), 1),
    ],
)
def test_an_error_ends_the_record_with_its_exit_code(error: BaseException, code: int) -> None:
    with pytest.raises(type(error)), RunRecorder("run", []):
        raise error
    assert RunRecords().load("last").exit_code == code


def test_a_run_that_made_no_cache_has_a_record(recorded: Recorded) -> None:
    assert recorded(lambda recorder: None).kv is None


def test_none_keeps_no_record() -> None:
    with RunRecorder("run", [], report="none"):
        pass
    assert RunRecords().paths() == []


def test_finishing_twice_writes_once() -> None:
    with RunRecorder("run", []) as recorder:
        recorder.finish(5)
    assert [RunRecords().load("last").exit_code, len(RunRecords().paths())] == [5, 1]
    assert RunRecords().load("last").run_id == recorder.run_id


def test_a_state_folder_that_cannot_be_written_warns_once_and_fails_nothing(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = own_home / "file"
    blocked.write_text("x")
    monkeypatch.setenv("XDG_STATE_HOME", str(blocked / "state"))
    said: list[str] = []
    with RunRecorder("run", [], warn=said.append) as recorder:
        pass
    recorder.finish(0)
    assert len(said) == 1
    assert str(blocked) in said[0]


@pytest.mark.parametrize("name", ["nowhere/record.json", "."])
def test_a_report_that_cannot_be_written_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--report"):
        RunRecorder("run", [], report=name)


def test_recording_loads_no_torch() -> None:
    script = "import sys, kvlite.record.recorder; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
