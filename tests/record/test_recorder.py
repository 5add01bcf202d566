"""What a run's record says after it, and that keeping one never fails the run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvlite.errors import ContextFull, Terminated
from kvlite.memory.counts import KVCounts
from kvlite.record.measure import DeviceReading
from kvlite.record.recorder import MAX_REQUESTS, MAX_SLOWEST, BatchProgress, Recorder
from kvlite.record.schema import BatchReport, LayerKept, ModelIdentity, RequestReport, RunRecord, TorchMemory
from kvlite.record.store import RunRecords, read_record
from tests.record.measured import FakeEngine, counts

IDENTITY = ModelIdentity(alias="demo", dtype="float32")


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[[Callable[[Recorder], None]], RunRecord]:
    def record(use: Callable[[Recorder], None]) -> RunRecord:
        path = tmp_path / "record.json"
        with Recorder("run", ["run", "demo"], report=str(path)) as recorder:
            use(recorder)
        return read_record(path)

    return record


Recorded = Callable[[Callable[[Recorder], None]], RunRecord]


def test_of_a_batch_the_answers_that_took_longest_are_named_and_its_course_is_kept(recorded: Recorded) -> None:
    def use(recorder: Recorder) -> None:
        engine = FakeEngine()
        recorder.opened(IDENTITY, {}, engine, "flag")
        recorder.sample(BatchProgress(tokens_generated=7, rows_used=1, rows=2))
        for number in range(MAX_REQUESTS + 50):
            recorder.answered(RequestReport(id=str(number), total_s=float(number % 1040)), engine.held)
        recorder.batch(BatchReport(total=5), 0)

    record = recorded(use)
    assert record.batch is not None
    slowest = [(one.id, one.total_s) for one in record.batch.slowest]
    assert slowest == [(str(number), number) for number in range(1039, 1039 - MAX_SLOWEST, -1)]
    (point,) = record.timeline
    assert (point.tokens_generated, point.rows_used, point.rows) == (7, 1, 2)


def test_the_record_holds_what_was_said_and_measured(recorded: Recorded) -> None:
    def use(recorder: Recorder) -> None:
        engine = FakeEngine(terms={"weights": 51, "kv": 900, "policy_state": 40})
        recorder.opened(IDENTITY, {"weights": 50, "kv": 900}, engine, "flag")
        engine.held = counts(live=400, peak=400, seen=5)
        recorder.sample()
        recorder.answered(RequestReport(id="a", prompt_tokens=3, tok_s=9.5), engine.held)
        engine.held = counts(live=400, peak=450, seen=25)
        recorder.term("checkpoints", 7)
        recorder.warning("careful")

    record = recorded(use)
    kv = record.kv
    assert kv is not None
    assert (kv.budget_source, kv.live_bytes, kv.peak_bytes, kv.allocated_unused_bytes) == ("flag", 400, 450, 540)
    assert (kv.tokens_seen, kv.tokens_kept, kv.tokens_evicted, kv.full_cache_bytes) == (25, 10, 15, 2000)
    assert (kv.bytes_per_token, kv.capacity_tokens, kv.policy_state_bytes) == (8, 100, 40)
    assert kv.within_budget
    assert kv.per_layer == [LayerKept(layer=0, kept=7.5, bytes=60)]
    assert [(t.name, t.predicted_bytes, t.measured_bytes) for t in record.memory.terms] == [
        ("weights", 50, 51),
        ("kv", 900, 900),
        ("policy_state", None, 40),
        ("checkpoints", None, 7),
    ]
    assert [(phase.name, phase.peak_bytes) for phase in record.memory.phases] == [("prefill", 70)]
    assert record.memory.host_rss_peak_bytes
    assert [(point.kv_bytes, point.allocated_bytes) for point in record.timeline] == [(400, 500)]
    assert [request.id for request in record.requests] == ["a"]
    assert (record.warnings, record.argv, record.exit_code) == (["careful"], ["run", "demo"], 0)
    assert (record.host.kernels, record.host.step) == ("torch", "eager")
    assert record.model == IDENTITY


@pytest.mark.parametrize(
    ("passing", "holds"),
    [
        (counts(peak=1000, reserved=1000), True),
        (counts(peak=1001), False),
        (counts(peak=10, reserved=1001), False),
    ],
)
def test_within_budget_is_computed_from_peak_and_reserved(recorded: Recorded, passing: KVCounts, holds: bool) -> None:
    record = recorded(lambda recorder: recorder.opened(IDENTITY, {}, FakeEngine(passing), "flag"))
    assert record.kv is not None
    assert record.kv.within_budget is holds


def test_one_sample_above_the_budget_is_enough_to_have_passed_it(recorded: Recorded) -> None:
    def use(recorder: Recorder) -> None:
        engine = FakeEngine()
        recorder.opened(IDENTITY, {}, engine, "flag")
        engine.held = counts(live=1001)
        recorder.sample()
        engine.held = counts(live=10)

    record = recorded(use)
    assert record.kv is not None
    assert not record.kv.within_budget
    assert record.kv.peak_bytes == 1001


def test_the_peak_is_that_of_the_run_and_the_budget_that_of_the_time(recorded: Recorded) -> None:
    def use(recorder: Recorder) -> None:
        engine = FakeEngine(counts(live=950, peak=950))
        recorder.opened(IDENTITY, {}, engine, "flag")
        recorder.sample()
        engine.held = counts(live=300, peak=300, reserved=490, budget=500)
        recorder.changed("less", {})
        recorder.sample()

    record = recorded(use)
    assert record.kv is not None
    assert (record.kv.peak_bytes, record.kv.allocated_unused_bytes) == (950, 190)
    assert record.kv.within_budget
    assert [point.budget_bytes for point in record.timeline] == [1000, 500, 500]


def test_another_model_has_a_peak_of_its_own_under_its_budget(recorded: Recorded) -> None:
    def use(recorder: Recorder) -> None:
        recorder.opened(IDENTITY, {}, FakeEngine(counts(live=9000, peak=9000, reserved=9900, budget=10_000)), "flag")
        recorder.sample()
        recorder.released()
        recorder.opened(IDENTITY, {}, FakeEngine(counts(live=500, peak=500)), "flag")
        recorder.sample()

    kv = recorded(use).kv
    assert kv is not None
    assert (kv.peak_bytes, kv.budget_bytes, kv.within_budget) == (9000, 1000, True)


def test_the_first_eviction_is_an_event_and_no_later_one(recorded: Recorded) -> None:
    def use(recorder: Recorder) -> None:
        engine = FakeEngine()
        recorder.opened(IDENTITY, {}, engine, "flag")
        for seen in (10, 11, 12):
            engine.held = counts(seen=seen)
            recorder.sample()

    assert [point.event for point in recorded(use).timeline] == [None, "first eviction", None]


def test_a_batch_sums_tokens_over_its_answers_and_keeps_the_first_1000(recorded: Recorded) -> None:
    def use(recorder: Recorder) -> None:
        recorder.opened(IDENTITY, {}, FakeEngine(counts(seen=12)), "flag")
        for number in range(MAX_REQUESTS + 5):
            recorder.answered(RequestReport(id=str(number)), counts(seen=12))
        recorder.batch(BatchReport(total=MAX_REQUESTS + 5), peak_bytes=300)

    record = recorded(use)
    assert record.kv is not None
    assert (record.kv.tokens_seen, record.kv.tokens_kept, record.kv.tokens_evicted) == (12_060, 10_050, 2_010)
    assert (record.kv.peak_bytes, record.kv.full_cache_bytes) == (300, None)
    assert (len(record.requests), record.requests_left_out) == (MAX_REQUESTS, 5)


def test_the_device_adds_up(recorded: Recorded) -> None:
    def use(recorder: Recorder) -> None:
        engine = FakeEngine(
            terms={"weights": 300, "kv": 100},
            gpu=DeviceReading("H200", "570", 1000, 200, 500),
            torch=TorchMemory(allocated_peak_bytes=410, reserved_peak_bytes=450),
        )
        recorder.opened(IDENTITY, {}, engine, "flag")
        recorder.term("checkpoints", 10**6)

    record = recorded(use)
    device = record.memory.device
    assert device is not None
    assert device.unaccounted_bytes == 100
    assert device.other_processes_bytes == 300
    measured = record.memory.measured_on_device
    assert device.total_bytes == device.free_bytes + 300 + measured + 100
    assert (record.host.gpu, record.host.driver, record.host.gpu_total_bytes) == ("H200", "570", 1000)


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
    with pytest.raises(type(error)), Recorder("run", []):
        raise error
    assert RunRecords().load("last").exit_code == code


def test_a_run_that_made_no_cache_has_a_record(recorded: Recorded) -> None:
    assert recorded(lambda recorder: None).kv is None


def test_none_keeps_no_record() -> None:
    engine = FakeEngine()
    with Recorder("run", [], report="none") as recorder:
        recorder.opened(IDENTITY, {}, engine, "flag")
        recorder.sample()
    assert RunRecords().paths() == []


def test_a_state_folder_that_cannot_be_written_warns_once_and_fails_nothing(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = own_home / "file"
    blocked.write_text("x")
    monkeypatch.setenv("XDG_STATE_HOME", str(blocked / "state"))
    said: list[str] = []
    with Recorder("run", [], warn=said.append):
        pass
    assert len(said) == 1
    assert str(blocked) in said[0]


def test_recording_loads_no_torch() -> None:
    script = "import sys, kvlite.record.recorder; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
