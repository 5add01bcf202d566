"""The program around the commands: flags, settings, errors, exit codes, a clean stdout."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
import typer

from kvlite import errors
from kvlite.cli import commands, main
from kvlite.cli.invocation import Invocation
from kvlite.cli.process import signals_raise
from kvlite.cli.signature import without
from kvlite.flags import option
from kvlite.llm.answer import sampling_of
from kvlite.options import AnswerOptions, ModelOptions

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions:
    overwrite: bool = option(False, from_settings=False, help="Start over.")


def probe(
    own: ProbeOptions,
    answer: AnswerOptions,
    options: Annotated[ModelOptions, without("model", "kv_per_seq")],
    call: Invocation,
) -> None:
    """Show what reached the command."""
    console = call.console
    given = asdict(own) | asdict(answer) | asdict(options)
    given["sampling"] = sampling_of(answer)
    given["default_model"] = call.default_model
    given["quiet"], given["color"], given["as_json"] = console.quiet, console.color, console.as_json
    console.json(given)


def install(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]) -> None:
    module = ModuleType("probe_command")
    module.probe = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "probe_command", module)
    monkeypatch.setattr(commands, "COMMANDS", {"probe": ("probe_command", "probe", "Probe.")})


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_home: Path
) -> Callable[..., tuple[int, str, str]]:
    install(monkeypatch, probe)
    monkeypatch.chdir(own_home)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: str) -> tuple[int, str, str]:
        code = main(args)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def given(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert code == 0, err
    return json.loads(out)  # type: ignore[no-any-return]


def raising(error: BaseException) -> Callable[[], None]:
    def probe() -> None:
        raise error

    return probe


def test_help_lists_the_commands_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in commands.COMMANDS)


def test_h_is_help_too(run: Callable[..., tuple[int, str, str]]) -> None:
    assert "--kv-budget SIZE" in run("probe", "-h")[1]


def test_no_command_shows_the_help_on_stderr_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage: kvlite")


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version_is_one_line(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert main([flag]) == 0
    out = capsys.readouterr().out
    assert out.startswith("kvlite ")
    assert out.count("\n") == 1


@pytest.mark.parametrize("args", [("--version", "--json"), ("--json", "--version")])
def test_version_as_json_names_what_kvlite_stands_on(capsys: pytest.CaptureFixture[str], args: tuple[str]) -> None:
    assert main(args) == 0
    assert {"kvlite", "python", "torch", "transformers", "cuda"} <= json.loads(capsys.readouterr().out).keys()


@pytest.mark.parametrize("args", [("-q", "probe"), ("probe", "-q"), ("-q", "probe", "-q")])
def test_a_global_flag_may_stand_before_and_after_the_command(
    run: Callable[..., tuple[int, str, str]], args: tuple[str]
) -> None:
    assert given(run(*args))["quiet"] is True


def test_a_global_flag_after_the_command_wins(run: Callable[..., tuple[int, str, str]]) -> None:
    assert given(run("--color", "never", "probe", "--color", "always"))["color"] == "always"
    assert given(run("--color", "never", "probe", "--json"))["color"] == "never"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("prob",), "No such command 'prob'. Did you mean 'probe'?; see 'kvlite --help'"),
        (("probe", "--kv-budge", "1GB"), "No such option: --kv-budge (Possible options: --kv-budget"),
        (("probe", "--kv-budget"), "Option '--kv-budget' requires an argument"),
        (("probe", "extra"), "Got unexpected extra argument(s) (extra)"),
        (("probe", "--top-k", "many"), "Invalid value for '--top-k'"),
        (("probe", "--prefill-chunk", "0"), "Invalid value for '--prefill-chunk'"),
        (("probe", "--quant", "3bit"), "'3bit' is not one of 'none', '8bit', '4bit', 'nf4', 'fp4'"),
        (("probe", "--temperature", "nan"), "temperature is nan; give a number from 0"),
        (("probe", "--temperature", "-1"), "temperature is -1.0"),
        (("probe", "--top-k", "-1"), "top_k is -1"),
        (("probe", "--greedy", "--temperature", "nan"), "--greedy contradicts --temperature nan"),
        (("probe", "--stop", ""), "an empty stop string would end every answer at once"),
        (("probe", "--system", "@nowhere.txt"), "cannot read 'nowhere.txt': No such file"),
        (("--color", "loud", "probe"), "Invalid value for '--color'"),
        (("--config", "nowhere.toml", "probe"), "cannot read nowhere.toml: No such file"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_2(
    run: Callable[..., tuple[int, str, str]], args: tuple[str], said: str
) -> None:
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert err.startswith("kvlite: ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (errors.OutputError("full"), 1, "full"),
        (errors.UsageError("wrong"), 2, "wrong"),
        (errors.ModelNotFound("no model"), 3, "no model"),
        (errors.DoesNotFit("too big"), 4, "too big"),
        (errors.BatchFailed("3 lines failed"), 5, "3 lines failed"),
        (errors.GateFailed("gate"), 6, "gate"),
        (errors.TimeLimit("late"), 124, "late"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (errors.Terminated("terminated"), 143, "terminated"),
        (MemoryError(), 4, "out of memory (MemoryError); try a smaller --kv-budget"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 4, "out of memory (DefaultCPUAllocator"),
        (ValueError("odd"), 1, "unexpected ValueError: odd; run with -v for the traceback"),
        (OSError(errno.ENOSPC, "No space left", "out.jsonl"), 1, "cannot write: out.jsonl: No space left"),
        (PermissionError(errno.EACCES, "no"), 1, "unexpected PermissionError"),
        (BrokenPipeError(), 0, None),
        (typer.Exit(6), 6, None),
    ],
)
def test_what_a_command_raises_becomes_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., tuple[int, str, str]],
    error: BaseException,
    code: int,
    said: str | None,
) -> None:
    install(monkeypatch, raising(error))
    result, out, err = run("probe")
    assert (result, out) == (code, "")
    if said is None:
        assert err == ""
    else:
        assert err.startswith(f"kvlite: {said}")
        assert err.count("\n") == 1


def test_torchs_out_of_memory_is_known_by_name(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    install(monkeypatch, raising(OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")))
    code, _, err = run("probe")
    assert code == 4
    assert err.startswith("kvlite: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB); try")


def test_verbose_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]) -> None:
    install(monkeypatch, raising(ValueError("odd")))
    code, _, err = run("probe", "-v")
    assert code == 1
    assert "Traceback (most recent call last)" in err
    assert err.endswith("kvlite: unexpected ValueError: odd\n")


def test_an_error_cannot_steer_the_terminal(run: Callable[..., tuple[int, str, str]]) -> None:
    assert "\x1b" not in run("probe", "\x1b[2J")[2]


def test_system_is_read_from_a_file(run: Callable[..., tuple[int, str, str]]) -> None:
    Path("system.txt").write_text("Be brief.\n")
    assert given(run("probe", "-s", "@system.txt"))["system"] == "Be brief."
    assert given(run("probe", "-s", "as it is"))["system"] == "as it is"


def test_only_given_sampling_settings_override(run: Callable[..., tuple[int, str, str]]) -> None:
    assert given(run("probe"))["sampling"] == {}
    assert given(run("probe", "--top-k", "5", "-t", "0.5"))["sampling"] == {"temperature": 0.5, "top_k": 5}
    assert given(run("probe", "--greedy"))["sampling"] == {"temperature": 0.0}


def user_config(home: Path) -> Path:
    path = home / ".config" / "kvlite" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_a_flag_beats_the_environment_that_beats_the_project_that_beats_the_user(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]], own_home: Path
) -> None:
    if sys.platform != "linux":
        pytest.skip("the user's config folder is elsewhere on this system")
    budget = lambda *flags: given(run("probe", *flags))["kv_budget"]  # noqa: E731
    assert budget() == "auto"
    user_config(own_home).write_text('kv-budget = "1GB"')
    assert budget() == "1GB"
    Path("kvlite.toml").write_text('kv_budget = "2GB"')
    assert budget() == "2GB"
    Path("kvlite.toml").write_text('kv_budget = "2GB"\n[probe]\nkv_budget = "3GB"')
    assert budget() == "3GB"
    monkeypatch.setenv("KVLITE_KV_BUDGET", "4GB")
    assert budget() == "4GB"
    assert budget("--kv-budget", "5GB") == "5GB"


def test_every_kind_of_option_can_be_set_in_a_file(run: Callable[..., tuple[int, str, str]]) -> None:
    Path("kvlite.toml").write_text(
        'quiet = true\ndefault_model = "tiny"\n[probe]\ntop-k = 3\ntemperature = 1\nstop = ["a", "b c"]\n'
        'pin-system = false\n4bit = true\nquant = "4bit"\n'
    )
    got = given(run("probe"))
    assert (got["quiet"], got["default_model"]) == (True, "tiny")
    assert (got["top_k"], got["temperature"], got["stop"]) == (3, 1.0, ["a", "b c"])
    assert (got["pin_system"], got["quant"]) == (False, "4bit")


def test_every_kind_of_option_can_be_set_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    values = {"QUIET": "1", "MODEL": "tiny", "TOP_K": "3", "PIN_SYSTEM": "0", "4BIT": "1", "OFFLINE": "1"}
    for name, value in values.items():
        monkeypatch.setenv(f"KVLITE_{name}", value)
    got = given(run("probe"))
    assert (got["quiet"], got["default_model"], got["top_k"]) == (True, "tiny", 3)
    assert (got["pin_system"], got["quant"], got["offline"]) == (False, "4bit", True)


def test_offline_follows_the_hubs_own_variable(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    assert given(run("probe"))["offline"] is False
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert given(run("probe"))["offline"] is True


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]) -> None:
    monkeypatch.setenv("KVLITE_TOP_K", "many")
    code, _, err = run("probe")
    assert code == 2
    assert "(from KVLITE_TOP_K)" in err


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("kv-budget = 5", "kv-budget is 5; give text in quotes"),
        ("top-k = true", "top-k is True; give a whole number"),
        ("top-k = 1.5", "top-k is 1.5; give a whole number"),
        ('temperature = "hot"', "temperature is 'hot'; give a number"),
        ('pin-system = "yes"', "pin-system is 'yes'; give true or false"),
        ('stop = "a"', "stop is 'a'; give a list"),
        ("stop = [1]", "stop is 1; give text in quotes"),
        ('quant = "3bit"', "quant: '3bit' is not one of"),
        ("prefill-chunk = 0", "prefill-chunk: "),
        ('kv-budged = "1GB"', "unknown setting 'kv-budged'; did you mean 'kv-budget'?"),
        ("[probe]\nzzz = 1", "unknown setting '[probe] zzz'"),
        ("[other]\ntop-k = 1", "unknown setting 'other'"),
        ("probe = 1", "unknown setting 'probe'"),
        ("default_model = 1", "default_model is 1; give text in quotes"),
        ('color = "loud"', "color: "),
        ("trust-remote-code = true", "trust-remote-code cannot be set in a file; give --trust-remote-code each time"),
        ("overwrite = true", "overwrite cannot be set in a file"),
        ("a = [", "is not valid TOML"),
    ],
)
def test_a_bad_setting_is_refused_by_file_and_key(
    run: Callable[..., tuple[int, str, str]], toml: str, said: str
) -> None:
    Path("kvlite.toml").write_text(toml)
    code, out, err = run("probe")
    assert (code, out) == (2, "")
    assert "kvlite.toml" in err
    assert said in err
    assert err.count("\n") == 1


def test_what_must_be_typed_each_time_is_not_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setenv("KVLITE_TRUST_REMOTE_CODE", "1")
    monkeypatch.setenv("KVLITE_OVERWRITE", "1")
    got = given(run("probe"))
    assert (got["trust_remote_code"], got["overwrite"]) == (False, False)


def test_a_config_named_on_the_command_line_is_the_only_one(run: Callable[..., tuple[int, str, str]]) -> None:
    Path("kvlite.toml").write_text("not toml at all")
    Path("other.toml").write_text('kv-budget = "1GB"')
    assert given(run("--config", "other.toml", "probe"))["kv_budget"] == "1GB"


def test_a_broken_config_does_not_stop_version(run: Callable[..., tuple[int, str, str]]) -> None:
    Path("kvlite.toml").write_text("not toml at all")
    assert run("--version")[0] == 0


def program(*args: str, **kwargs: Any) -> subprocess.Popen[bytes]:
    """kvlite in a process of its own."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "-m", "kvlite", *args]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}, **kwargs)


def test_a_reader_that_closes_the_pipe_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = program("--json", "policies", stdout=writer)
    os.close(writer)
    assert (process.communicate()[1], process.returncode) == (b"", 0)


def test_a_full_disk_is_one_line_and_exit_1() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    for args, said in ((["policies"], b"cannot write to stdout: "), (["--help"], b"cannot write: ")):
        with Path("/dev/full").open("w") as full:
            process = program(*args, stdout=full)
            error = process.communicate()[1]
        assert (error, process.returncode) == (b"kvlite: " + said + b"No space left on device\n", 1)


def test_a_closed_stdout_is_one_line_and_exit_1() -> None:
    process = program("policies", preexec_fn=lambda: os.close(1))
    error = process.communicate()[1]
    assert (error, process.returncode) == (b"kvlite: stdout is closed; give the answer somewhere to go\n", 1)


def test_stdout_is_utf8_in_any_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    process = program("policies", stdout=subprocess.PIPE)
    out, err = process.communicate()
    assert (err, process.returncode) == (b"", 0)
    out.decode("utf-8")


@pytest.mark.parametrize("raised", [KeyboardInterrupt, errors.Terminated])
def test_a_signal_that_hits_a_destructor_comes_once_more(
    raised: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    class Dying:
        def __del__(self) -> None:
            raise raised("dropped")

    with pytest.raises(raised), signals_raise():
        dying = Dying()
        del dying
        time.sleep(5)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)],
    ids=["SIGTERM", "SIGHUP", "SIGINT"],
)
def test_a_signal_ends_a_command_in_one_line_after_its_cleanup(tmp_path: Path, number: int, code: int) -> None:
    script = tmp_path / "wait.py"
    script.write_text(
        "import sys, time, types\n"
        "from kvlite.cli import commands, main\n"
        "def probe():\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('cleaned', flush=True)\n"
        "module = types.ModuleType('probe_command')\n"
        "module.probe = probe\n"
        "sys.modules['probe_command'] = module\n"
        "commands.COMMANDS = {'probe': ('probe_command', 'probe', 'Probe.')}\n"
        "sys.exit(main(['probe']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate()
    said = {143: b"kvlite: terminated\n", 130: b"kvlite: interrupted\n"}[code]
    assert (out, err, process.returncode) == (b"cleaned\n", said, code)


@pytest.mark.parametrize(
    ("shell", "file"), [("bash", "kvlite.bash"), ("zsh", "_kvlite"), ("fish", "kvlite.fish"), ("pwsh", "kvlite.ps1")]
)
def test_the_completion_scripts_are_those_in_the_repository(
    capsys: pytest.CaptureFixture[str], shell: str, file: str
) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == (ROOT / "completions" / file).read_text()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("kvlite po", {"policies"}),
        ("kvlite --ver", {"--version", "--verbose"}),
        ("kvlite run --kv-policy win", {"window"}),
        ("kvlite completion pw", {"pwsh"}),
        ("kvlite run --on-full st", {"stop"}),
    ],
)
def test_completion_answers_the_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, expected: set[str]
) -> None:
    words = line.split()
    monkeypatch.setenv("_KVLITE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    assert main([]) == 0
    assert set(capsys.readouterr().out.split()) == expected
