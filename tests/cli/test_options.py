"""Options are declared once: what the command line, files and variables know of them is what their fields say."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import pytest
import typer.main
from typer.core import TyperOption

from kvlite.cache.policy import DEFAULT_POLICY, load_policy
from kvlite.catalog.names import DEMO
from kvlite.cli import app, commands, main
from kvlite.cli.commands import CommandGroup
from kvlite.cli.invocation import UNNAMED, Invocation
from kvlite.cli.settings import setting_name
from kvlite.cli.signature import from_flags, only
from kvlite.errors import UsageError
from kvlite.flags import argument, option
from kvlite.llm.answer import sampling_of
from kvlite.memory.plan import MOST_CHUNK
from kvlite.memory.prediction import QUANT_BYTES
from kvlite.options import BUILT_IN_MODEL, AnswerOptions, ModelOptions, OutputOptions


def options_of(command: str) -> list[TyperOption]:
    group = typer.main.get_command(app)
    assert isinstance(group, CommandGroup)
    return [param for param in group.load(command).params if isinstance(param, TyperOption)]


def every_option() -> Iterator[TyperOption]:
    return itertools.chain.from_iterable(map(options_of, commands.COMMANDS))


def test_what_happens_when_full_is_told_as_the_policies_do_it() -> None:
    told = {option.name: option.show_default for option in options_of("run")}["on_full"]
    assert (
        told
        == f"{load_policy(DEFAULT_POLICY).when_full(None)}; {load_policy('full').when_full(None)} under policy full"
    )


def test_defaults_are_those_of_what_the_options_fill() -> None:
    assert ModelOptions().kv_policy == DEFAULT_POLICY
    assert ModelOptions().prefill_chunk == MOST_CHUNK
    assert BUILT_IN_MODEL == DEMO
    assert f"built-in {DEMO} answers" in UNNAMED


@pytest.mark.parametrize("kind", [ModelOptions, AnswerOptions, OutputOptions])
def test_every_field_is_an_option_of_a_command(kind: type) -> None:
    names = {option.name for option in every_option()}
    assert {field.name for field in fields(kind)} <= names | {"model"}


def test_every_option_is_explained() -> None:
    assert [option.name for option in every_option() if not option.help] == []


def test_what_runs_foreign_code_must_be_typed_each_time() -> None:
    typed = {setting_name(option) for option in options_of("batch") if not option.allow_from_autoenv}
    assert {"trust-remote-code", "allow-pickle"} <= typed


def test_what_a_weight_takes_is_known_of_every_kind_of_quantisation() -> None:
    assert set(get_args(get_type_hints(ModelOptions)["quant"])) == {"none", *QUANT_BYTES}


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOptions:
    """A new option is one field."""

    words: tuple[str, ...] = argument((), metavar="WORD", help="Words.")
    trial_flag: int = option(3, "-y", metavar="N", min=1, help="A trial.")
    often: tuple[Path, ...] = option((), help="Many.")
    is_on: bool = option(True, help="Whether.")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, own_home: Path) -> dict[str, Any]:
    """The arguments that reach a command with OneOptions and some of ModelOptions, called `one`."""
    seen: dict[str, Any] = {}

    def one(
        own: OneOptions, options: Annotated[ModelOptions, only("quant", "four_bit", think="off")], call: Invocation
    ) -> None:
        """One."""
        seen.update(own=own, options=options, sources=call.sources)

    monkeypatch.setattr(commands, "COMMANDS", {"one": ("one_module", "one", "One.")})
    monkeypatch.setattr(commands, "import_module", lambda name: type("Module", (), {"one": staticmethod(one)}))
    monkeypatch.chdir(own_home)
    return seen


def test_a_new_field_is_a_flag_a_variable_and_a_key_and_in_the_help(
    seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["one"]) == 0
    assert seen["own"] == OneOptions()
    assert seen["sources"]["trial_flag"] == "default"
    Path("kvlite.toml").write_text("trial-flag = 4", encoding="utf-8-sig")  # as editors on Windows do
    assert main(["one"]) == 0
    assert (seen["own"].trial_flag, seen["sources"]["trial_flag"]) == (4, "config")
    monkeypatch.setenv("KVLITE_TRIAL_FLAG", "5")
    assert main(["one"]) == 0
    assert (seen["own"].trial_flag, seen["sources"]["trial_flag"]) == (5, "env")
    assert main(["one", "-y", "6", "a", "b", "--often", "x", "--often", "y", "--no-is-on"]) == 0
    assert seen["own"] == OneOptions(words=("a", "b"), trial_flag=6, often=(Path("x"), Path("y")), is_on=False)
    assert seen["sources"]["trial_flag"] == "flag"
    Path("kvlite.toml").unlink()
    capsys.readouterr()
    assert main(["one", "--help"]) == 0
    assert "  -y, --trial-flag N     A trial.  [default: 3; x>=1]\n" in capsys.readouterr().out


def test_a_command_takes_some_fields_and_other_defaults(seen: dict[str, Any]) -> None:
    assert main(["one", "--quant", "nf4"]) == 0
    assert seen["options"] == ModelOptions(quant="nf4", think="off")
    assert main(["one", "--kv-budget", "1GB"]) == 2


@pytest.mark.parametrize(
    ("setting", "args", "quant"),
    [
        ("4bit = true", ["--quant", "none"], "none"),
        ("quant = '8bit'", ["--4bit"], "4bit"),
        ("quant = 'nf4'", [], "nf4"),
    ],
)
def test_of_two_options_for_one_thing_the_stronger_source_counts(
    seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch, setting: str, args: list[str], quant: str
) -> None:
    Path("kvlite.toml").write_text(setting)
    assert main(["one", *args]) == 0 and seen["options"].quant == quant
    monkeypatch.setenv("KVLITE_4BIT", "1")
    assert main(["one", *args]) == 0 and seen["options"].quant == (quant if args else "4bit")


@pytest.mark.parametrize("args", [["--4bit"], ["--4bit", "--quant", "4bit"]])
def test_a_short_flag_stands_for_a_value(seen: dict[str, Any], args: list[str]) -> None:
    assert main(["one", *args]) == 0
    assert seen["options"].quant == "4bit"


@pytest.mark.parametrize("quant", ["8bit", "none"])
def test_a_short_flag_does_not_overrule_another_value(
    seen: dict[str, Any], capsys: pytest.CaptureFixture[str], quant: str
) -> None:
    assert main(["one", "--4bit", "--quant", quant]) == 2
    assert capsys.readouterr().err == f"kvlite: --4bit contradicts --quant {quant}; give one of them\n"
    assert seen == {}


def test_one_name_is_not_given_twice() -> None:
    def twice(one: OneOptions, other: OneOptions) -> None:
        """Twice."""

    with pytest.raises(ValueError, match="duplicate parameter name: 'words'"):
        from_flags(twice)


def test_sampling_is_what_was_given() -> None:
    assert sampling_of(AnswerOptions()) == {}
    assert sampling_of(AnswerOptions(top_k=5, greedy=True)) == {"top_k": 5, "temperature": 0.0}
    with pytest.raises(UsageError, match=r"--greedy contradicts --temperature 0\.5"):
        sampling_of(AnswerOptions(temperature=0.5, greedy=True))
