"""`kvlite run` on the built-in model, from arguments to stdout, stderr and exit code."""

import io
import json
import signal
import subprocess
import sys

import pytest

from kvlite.cli import main
from kvlite.engine.decode_graphs import GraphRecorder, NotCapturable
from kvlite.record.store import RunRecords

FUSED = ["norm", "mlp", "attention", "layer", "decoder"]


@pytest.fixture(autouse=True)
def nothing_on_stdin(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)


@pytest.fixture
def pipe(monkeypatch):
    """Puts bytes on stdin."""
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.fixture
def run(capfd):
    """Runs `kvlite run` and gives back exit code, stdout and stderr."""

    def run(*args):
        code = main(["run", *args])
        return (code, *capfd.readouterr())

    return run


@pytest.fixture
def body(run):
    """Runs `kvlite run --json` and gives back the JSON."""

    def body(*args):
        code, out, err = run("demo", "--json", *args)
        assert code == 0, err
        return json.loads(out)

    return body


def test_stdout_is_the_answer_and_stderr_says_what_ran(run):
    code, out, err = run("demo", "Hello", "there", "--greedy")
    assert code == 0 and out.strip() and out.endswith("\n") and "\x1b" not in out
    assert "demo" in err and "KV" in err and "policy replay" in err and "cpu" in err


def test_a_policys_settings_are_what_the_banner_the_json_and_the_record_say(run, tmp_path, monkeypatch):
    monkeypatch.setenv("KVLITE_KV_POLICY", "window:sinks=8")
    code, out, err = run("demo", "hi", "--json", "--greedy", "-n", "1", "--report", str(tmp_path / "r.json"))
    assert code == 0 and "policy window:sinks=8" in err
    assert json.loads(out)["kvlite"]["kv"]["policy"] == "window:sinks=8"
    assert json.loads((tmp_path / "r.json").read_text())["kv"]["policy"] == "window:sinks=8"


@pytest.mark.parametrize("stored", ["int8", "k6v4", "int4"])
def test_low_bit_slots_are_what_the_banner_the_json_and_the_record_say(run, tmp_path, stored):
    record = tmp_path / "record.json"
    code, out, err = run(
        "demo", "Hello", "--kv-dtype", stored, "--kv-budget", "80KB", "--json", "-v", "--report", str(record)
    )
    assert code == 0 and f"{stored} slots move what the model says" in err
    told, kept = json.loads(out)["kvlite"]["kv"], json.loads(record.read_text())["kv"]
    per_token = 4 * 2 * {"int8": 68, "k6v4": 44, "int4": 36}[stored]  # layers, KV heads; a scale per 32 channels
    assert told["dtype"] == kept["dtype"] == stored
    assert kept["bytes_per_token"] == per_token and told["reserved_bytes"] <= 80_000


def test_low_bit_slots_that_change_the_model_are_warned_of_and_those_that_destroy_it_are_refused(run, monkeypatch):
    monkeypatch.setattr("kvlite.models.kv_quant_check.NOTICEABLE", 0.0)
    code, out, err = run("demo", "Hello", "--kv-dtype", "int4")
    assert code == 0 and out.strip() and "warning: int4 slots change what the model says" in err
    monkeypatch.setattr("kvlite.models.kv_quant_check.DESTROYED", 0.0)
    code, out, err = run("demo", "Hello", "--kv-dtype", "int4")
    assert code == 4 and out == "" and "give --kv-dtype int8 or auto" in err


@pytest.mark.parametrize(
    ("harmless", "of_4", "budget", "dtype"),
    [
        (1.0, 1.0, "100kB", "int4"),
        (1.0, 0.001, "100kB", "k6v4"),
        (0.001, 0.001, "100kB", "int8"),
        (0.0, 0.0, "100kB", "float32"),
        (1.0, 1.0, "100MB", "float32"),
    ],
)
def test_auto_takes_the_slots_that_the_model_survives(run, tmp_path, monkeypatch, harmless, of_4, budget, dtype):
    monkeypatch.setattr("kvlite.models.kv_quant_check.HARMLESS", harmless)
    monkeypatch.setattr("kvlite.models.kv_quant_check.HARMLESS_KEYS_OF_4", of_4)
    record = tmp_path / "record.json"
    code, _, err = run("demo", "hi", "-v", "--kv-budget", budget, "--report", str(record))
    assert code == 0 and err.count("auto passes over") == {"int4": 0, "k6v4": 1, "int8": 2, "float32": 3}[dtype] * (
        budget != "100MB"
    )
    kv = json.loads(record.read_text())["kv"]
    assert kv["dtype"] == dtype and kv["reserved_bytes"] <= kv["budget_bytes"]


def test_a_budget_that_only_smaller_slots_fit_is_taken_in_these(run):
    code, out, err = run("demo", "hi", "--kv-budget", "20kB")
    assert code == 0 and out.strip() and "in int4" in err


def test_quiet_leaves_only_the_answer(run):
    code, out, err = run("demo", "Hello", "-q")
    assert code == 0 and out.strip() and err == ""


def test_without_a_model_the_built_in_one_answers_and_says_so(run):
    code, out, err = run("Hello there")
    assert code == 0 and out.strip() and "demo answers" in err


@pytest.mark.parametrize("args", [(), ("-",)])
def test_at_a_pipe_too_the_built_in_model_says_so_and_names_a_real_one(run, pipe, args):
    pipe(b"Hello")
    assert "no model is named" in run(*args)[2]
    pipe(b"Hello")
    assert "no model is named" not in run("demo", *args)[2]


def test_the_default_model_is_used_where_no_word_names_one(run, monkeypatch):
    monkeypatch.setenv("KVLITE_MODEL", "./nowhere")
    assert run("Hello there")[0] == 3
    assert run("demo", "Hello")[0] == 0


def test_stdin_is_part_of_the_prompt(body, pipe):
    alone = body("Hello")["usage"]["prompt_tokens"]
    pipe(b"My name is Tom.\n")
    assert body("Hello")["usage"]["prompt_tokens"] > alone
    pipe(b"Hello")
    assert body("-")["usage"]["prompt_tokens"] == alone


def test_json_keeps_the_keys_scripts_rely_on(body):
    answer = body("Hello", "-n", "3")
    assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 3
    kv = answer["kvlite"]["kv"]
    names = {"budget_bytes", "reserved_bytes", "live_bytes", "peak_bytes"}
    assert names | {"tokens_seen", "tokens_kept", "tokens_evicted", "policy", "dtype", "full_heads", "heads"} == set(kv)
    assert kv["reserved_bytes"] <= kv["budget_bytes"]


def test_the_budget_and_the_policy_reach_the_cache(body):
    kv = body(
        "Tell me a story. " * 20, "--kv-budget", "40tok", "--kv-policy", "window", "--no-pin-system", "--profile", "off"
    )
    kv = kv["kvlite"]["kv"]
    assert kv["policy"] == "window" and kv["tokens_kept"] == 40 and kv["tokens_evicted"] == kv["tokens_seen"] - 40


def test_evictions_are_told_once_on_stderr(run):
    code, _, err = run("demo", "Tell me a story. " * 20, "--kv-budget", "40tok")
    assert code == 0 and err.count("no longer sees") == 1


def test_the_same_seed_gives_the_same_answer(body):
    sampled = ("Hello", "--temperature", "3", "-n", "12")
    first, again = (body(*sampled, "--seed", "7") for _ in range(2))
    assert first["choices"] == again["choices"] and first["kvlite"]["seed"] == 7
    assert body(*sampled, "--seed", "8")["choices"] != first["choices"]


def test_a_seed_nobody_gave_is_drawn_and_told(body):
    first = body("Hello", "-t", "3", "-n", "12")
    again = body("Hello", "-t", "3", "-n", "12", "--seed", str(first["kvlite"]["seed"]))
    assert first["choices"] == again["choices"]


def test_a_stop_string_ends_the_answer_before_it(body):
    whole = body("Hello", "--greedy")["choices"][0]["message"]["content"]
    cut = body("Hello", "--greedy", "--stop", whole[4:7])["choices"][0]
    assert cut["message"]["content"] == whole[: whole.index(whole[4:7])] and cut["finish_reason"] == "stop"


def test_the_system_prompt_is_fed_and_raw_is_not_a_chat(body):
    plain = body("Hello")["usage"]["prompt_tokens"]
    assert body("Hello", "-s", "Be brief.")["usage"]["prompt_tokens"] > plain
    assert body("Hello", "--raw", "-n", "2")["usage"]["prompt_tokens"] < plain


@pytest.mark.parametrize(("line", "offers"), [("kvlite run de", True), ("kvlite run demo de", False)])
def test_the_first_word_is_completed_as_a_model(capfd, monkeypatch, line, offers):
    monkeypatch.setenv("_KVLITE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    main([])
    assert ("demo" in capfd.readouterr().out.split()) is offers


def test_time_is_said_on_stderr(run):
    assert "tok/s" in run("demo", "Hello", "--time", "-q")[2]


def test_a_run_is_recorded_where_asked(run, tmp_path):
    assert run("demo", "Hello")[0] == 0
    record = RunRecords().load("last")
    assert record.command == "run" and record.exit_code == 0 and record.requests[0].completion_tokens > 0
    terms = {term.name: term for term in record.memory.terms}
    for name in ("kv", "policy_state", "positions", "staging"):
        assert terms[name].predicted_bytes == terms[name].measured_bytes > 0
    assert run("demo", "Hello", "--report", str(tmp_path / "record.json"))[0] == 0
    assert (tmp_path / "record.json").exists() and len(RunRecords().paths()) == 1
    assert run("demo", "Hello", "--report", "none")[0] == 0 and len(RunRecords().paths()) == 1


def test_the_source_of_the_budget_is_recorded(run, monkeypatch):
    run("demo", "Hello", "--kv-budget", "100tok")
    assert RunRecords().load("last").kv.budget_source == "flag"
    monkeypatch.setenv("KVLITE_KV_BUDGET", "100tok")
    run("demo", "Hello")
    assert RunRecords().load("last").kv.budget_source == "env"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 2, "prompt is empty"),
        (("demo",), 2, "prompt is empty"),
        (("demo", "  "), 2, "prompt is empty"),
        (("demmo", "hi"), 3, "did you mean demo"),
        (("./nowhere", "hi"), 3, "no folder"),
        (("demo", "hi", "-t", "nan"), 2, "temperature is nan"),
        (("demo", "hi", "--top-p", "0"), 2, "top_p"),
        (("demo", "hi", "-n", "0"), 2, "max-tokens"),
        (("demo", "hi", "--max-time", "0"), 2, "--max-time"),
        (("demo", "hi", "--kv-budget", "lots"), 2, "lots"),
        (("demo", "hi", "--kv-budget", "1tok"), 4, "smallest"),
        (("demo", "hi", "--kv-budget", "900TB"), 4, "free"),
        (("demo", "hi", "--json", "-x"), 2, "contradicts"),
        (("demo", "hi", "--raw", "-s", "x"), 2, "contradicts"),
        (("demo", "hi", "--greedy", "-t", "1"), 2, "contradicts"),
        (("demo", "hi", "-f", "nowhere.txt"), 2, "nowhere.txt"),
        (("demo", "hi", "--report", "/nowhere/r.json"), 2, "--report"),
        (("demo", "caf\udce9"), 2, "not UTF-8"),
        (("demo", "hi", "-s", "caf\udce9"), 2, "'-s' / '--system': not UTF-8"),
        (("demo", "hi", "--stop", "caf\udce9"), 2, "not UTF-8"),
    ],
)
def test_mistakes_end_in_one_line_and_the_right_code(run, args, code, message):
    got, out, err = run(*args)
    assert got == code and out == ""
    assert message in err and len(err.strip().splitlines()) == 1 and "Traceback" not in err


def test_a_full_cache_with_on_full_error_ends_with_code_4(run):
    code, _, err = run("demo", "Tell me a story. " * 20, "--kv-budget", "40tok", "--on-full", "error")
    assert code == 4 and "raise --kv-budget" in err


def test_a_full_cache_with_on_full_stop_ends_the_answer(body):
    choice = body("Tell me a joke", "--kv-budget", "30tok", "--on-full", "stop")["choices"][0]
    assert choice["finish_reason"] == "length"


def test_non_utf8_stdin_names_the_offset(run, pipe):
    pipe(b"caf\xe9")
    code, out, err = run("demo")
    assert code == 2 and out == "" and "offset 3" in err


def test_a_closed_pipe_is_quiet(own_home):
    command = f"{sys.executable} -m kvlite run demo Hello -q -t 5 --seed 1 -n 400"
    script = f"{command} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n" and done.stderr == ""


def test_ctrl_c_keeps_what_there_is_and_ends_with_130(own_home):
    args = [sys.executable, "-m", "kvlite", "run", "demo", "Hello", "-q", "-t", "50", "--seed", "1", "--raw"]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
    assert first and rest.endswith(b"\n")
    assert process.returncode == 130 and b"interrupted" in err and b"Traceback" not in err


def test_the_banner_says_what_happens_when_the_cache_is_full(run):
    assert "policy replay · cpu (torch)" in run("demo", "hi", "-n", "1", "--device", "cpu")[2]
    assert (
        "policy window, stop when full · "
        in run("demo", "hi", "-n", "1", "--kv-policy", "window", "--on-full", "stop")[2]
    )


def test_the_banner_says_what_is_reserved_of_the_budget_and_what_the_window_allows(run):
    banner = run("demo", "hi", "-n", "1", "--kv-budget", "100MB")[2]
    assert " of 100 MB = " in banner and "less room for new ones)" in banner
    assert "less room" not in run("demo", "hi", "-n", "1", "--kv-budget", "64tok")[2]


def test_the_banner_says_when_the_conversation_ends_with_the_window(run, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("kvlite.models.verify._learn_rotations", lambda *_: None)
        assert "ends at 2,048 tok: positions cannot move" in run("demo", "hi", "-n", "1")[2]
    again = run("demo", "hi", "-n", "1", "--dtype", "bfloat16")[2]  # not the verdict of before
    assert "positions cannot move" not in again


@pytest.mark.parametrize(("flags", "fused"), [((), FUSED), (("--no-fuse",), [])])
def test_modules_are_fused_unless_told_otherwise(run, flags, fused):
    assert run("demo", "Hello!", "-n", "3", *flags)[1] == "Hello! How\n"
    assert RunRecords().load("last").model.fused == fused


def test_what_is_not_fused_is_said_with_v_and_recorded(run, monkeypatch):
    monkeypatch.setattr("kvlite.models.fusing.FACTOR", 0.0)
    monkeypatch.setattr("kvlite.models.fusing.FLOOR", -1.0)
    code, out, err = run("demo", "Hello!", "-n", "3", "-v")
    assert (code, out) == (0, "Hello! How\n")
    said = [line.strip() for line in err.splitlines() if "not fused: mlp, 4 modules: off by " in line]
    refused = RunRecords().load("last").model.refused
    assert len(said) == 1 and said[0].removeprefix("not fused: ") in refused
    assert "not fused" not in run("demo", "Hello!", "-n", "3")[2]


def test_the_kernels_that_run_are_said_and_those_that_cannot_are_refused(run, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    code, _, err = run("demo", "hi", "-n", "1")
    assert code == 0 and "cpu (torch)" in err
    assert RunRecords().load("last").host.kernels == "torch"
    code, out, err = run("demo", "hi", "-n", "1", "--kernels", "triton")
    assert (code, out) == (2, "")
    assert "--kernels triton: " in err and "give --kernels auto or torch" in err


def test_how_decode_steps_run_is_in_the_record(run):
    assert run("demo", "hi", "-n", "1")[0] == 0
    assert RunRecords().load("last").host.step == "eager"


def test_capturing_is_refused_before_anything_is_loaded_where_there_are_no_graphs(run, monkeypatch):
    monkeypatch.setattr("kvlite.models.loading.load", lambda *_: pytest.fail("the weights were read"))
    code, out, err = run("demo", "hi", "-n", "1", "--capture")
    assert (code, out) == (2, "")
    assert "--capture: CUDA graphs need a CUDA device, and this is cpu" in err


@pytest.mark.parametrize("obstacle", [None, "experts ask the host"])
def test_captured_steps_and_what_stands_in_their_way_are_said(run, monkeypatch, obstacle):
    monkeypatch.setattr("kvlite.engine.decode_graphs.wants_graphs", lambda *_: True)
    monkeypatch.setattr("kvlite.engine.decode_graphs.CudaGraphs", lambda *_: GraphRecorder())
    if obstacle is not None:
        monkeypatch.setattr("kvlite.engine.feeding.try_replay", lambda *_: refuse(obstacle))
    code, out, err = run("demo", "Hello!", "-n", "3", "--capture")
    assert (code, out) == (0, "Hello! How\n")
    record = RunRecords().load("last")
    terms = {term.name for term in record.memory.terms}
    if obstacle is None:
        assert "cpu (torch, captured steps)" in err
        assert record.host.step == "captured" and "step" in terms
    else:
        assert "cpu (torch, eager steps)" in err and "step" not in terms
        assert "warning: --capture: decode steps run eagerly: " in err and obstacle in err
        assert record.host.step.startswith("eager: ") and record.host.step.endswith(obstacle)


def refuse(obstacle):
    raise NotCapturable(obstacle)


def test_graphs_that_fail_in_mid_answer_are_said_and_the_answer_is_whole(run, monkeypatch):
    class Fails(GraphRecorder):
        left = 2  # those of the check

        def record(self, body):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("no more graphs")
            return super().record(body)

    monkeypatch.setattr("kvlite.engine.decode_graphs.wants_graphs", lambda *_: True)
    monkeypatch.setattr("kvlite.engine.decode_graphs.CudaGraphs", lambda *_: Fails())
    code, out, err = run("demo", "Hello!", "-n", "3", "--capture")
    assert (code, out) == (0, "Hello! How\n")
    assert "cpu (torch, captured steps)" in err
    assert err.count("warning: --capture: decode steps run eagerly: ") == 1 and "no more graphs" in err
    assert RunRecords().load("last").host.step.endswith("is not captured: no more graphs")


def test_what_the_user_was_warned_of_is_in_the_record(run):
    code, _, err = run("demo", "hi", "-n", "1", "--extract")
    assert code == 0 and "warning: the answer has no code block" in err
    assert RunRecords().load("last").warnings == ["the answer has no code block; this is all of it"]
