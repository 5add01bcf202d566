"""The shared options say what the objects they fill say."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, get_origin

import pytest
import typer.main
from typer.core import TyperOption
from typer.models import CommandInfo

from kvlite.cache.policy import DEFAULT_POLICY, load_policy
from kvlite.catalog.names import DEMO
from kvlite.cli import options
from kvlite.cli.settings import setting_name
from kvlite.errors import UsageError
from kvlite.memory.prediction import QUANT_BYTES
from kvlite.options import ModelOptions


def shared_options() -> list[TyperOption]:
    """Every option that options.py declares."""
    aliases = {name: alias for name, alias in vars(options).items() if get_origin(alias) is Annotated}
    code = f"def takes_all({', '.join(f'{name.lower()}_: {name} = None' for name in aliases)}): ..."
    scope: dict[str, object] = dict(aliases)
    exec(code, scope)  # noqa: S102 - a signature with one parameter per alias
    info = CommandInfo(name="all", callback=scope["takes_all"])  # type: ignore[arg-type]
    command = typer.main.get_command_from_info(info, pretty_exceptions_short=False, rich_markup_mode=None)
    return [param for param in command.params if isinstance(param, TyperOption)]


def test_defaults_in_the_help_are_those_of_model_options() -> None:
    defaults = {field.name.replace("_", "-"): field.default for field in fields(ModelOptions)}
    defaults["on-full"] = "; ".join(
        [load_policy(DEFAULT_POLICY).when_full(None), f"{load_policy('full').when_full(None)} under policy full"]
    )
    shown = {setting_name(option): option.show_default for option in shared_options()}
    told = {name: text for name, text in shown.items() if isinstance(text, str) and name in defaults}
    assert told.keys() >= {"kv-budget", "kv-policy", "kv-dtype", "on-full", "prefill-chunk", "quant", "dtype", "device"}
    assert told == {name: str(defaults[name]) for name in told}


def test_every_field_of_model_options_has_an_option() -> None:
    names = {setting_name(option).replace("-", "_") for option in shared_options()}
    assert {field.name for field in fields(ModelOptions)} <= names


def test_the_built_in_model_has_the_catalogs_name() -> None:
    assert options.BUILT_IN_MODEL == DEMO


def test_every_option_is_explained() -> None:
    assert [option.name for option in shared_options() if not option.help] == []


def test_what_runs_foreign_code_must_be_typed_each_time() -> None:
    typed = {setting_name(option) for option in shared_options() if not option.allow_from_autoenv}
    assert {"trust-remote-code", "allow-pickle"} <= typed


def test_flags_that_were_not_given_keep_their_defaults() -> None:
    assert options.model_options(model="tiny", kv_budget=None) == ModelOptions(model="tiny")


def test_given_flags_arrive() -> None:
    built = options.model_options(model="tiny", kv_budget="1GB", offline=True, think="off", on_full="stop")
    assert built == ModelOptions(model="tiny", kv_budget="1GB", offline=True, think="off", on_full="stop")


@pytest.mark.parametrize("quant", [None, "4bit"])
def test_4bit_is_short_for_quant_4bit(quant: str | None) -> None:
    assert options.model_options(model="tiny", four_bit=True, quant=quant).quant == "4bit"


def test_4bit_does_not_overrule_another_quant() -> None:
    with pytest.raises(UsageError, match="--4bit contradicts --quant 8bit"):
        options.model_options(model="tiny", four_bit=True, quant="8bit")


def test_what_a_weight_takes_is_known_of_every_kind_of_quantisation() -> None:
    assert set(options.QUANT_SPELLINGS.values()) == {"none", *QUANT_BYTES}
