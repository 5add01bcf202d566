"""From a command, a function of option dataclasses, to the function of single flags that Typer reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from inspect import Parameter, Signature
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import typer

from kvlite.cli.invocation import Invocation
from kvlite.console import Console
from kvlite.flags import Flag

_SOURCES = {"DEFAULT_MAP": "config", "ENVIRONMENT": "env", "COMMANDLINE": "flag"}
_STRENGTH = ["default", *_SOURCES.values()]


class Taken(NamedTuple):
    """The fields of a dataclass that a command has as flags, and the defaults it changes."""

    has: Callable[[str], bool]
    defaults: Mapping[str, Any]


def only(*names: str, **defaults: Any) -> Taken:
    """Take these fields, and those of `defaults` with that default."""
    return Taken({*names, *defaults}.__contains__, defaults)


def without(*names: str) -> Taken:
    """Take all fields but these."""
    return Taken(lambda name: name not in names, {})


class _Option(NamedTuple):
    """One field of a dataclass on the command line."""

    name: str
    kind: Any
    default: Any
    flag: Flag

    @property
    def decls(self) -> list[str]:
        """Its names: those declared, and the field's own unless one of them is long."""
        if any(name.startswith("--") for name in self.flag.names):
            return [*self.flag.names]
        own = self.name.replace("_", "-")
        return [*self.flag.names, f"--{own}/--no-{own}" if self.kind is bool and self.default is True else f"--{own}"]

    @property
    def long(self) -> str:
        """The long name, which is the setting's in files and variables."""
        return next(name for name in self.decls if name.startswith("--")).partition("/")[0]

    def parameter(self, **how: Any) -> Parameter:
        """The parameter that Typer reads; `how` overrules the arguments of typer.Option."""
        flag, kind, default = self.flag, self.kind, self.default
        shared: dict[str, Any] = {
            "help": flag.help,
            "metavar": flag.metavar,
            "show_default": flag.shown_default,
            "callback": _first(flag.first) if flag.first else flag.parse and _callback(flag.parse),
            "autocompletion": _COMPLETERS[flag.complete] if isinstance(flag.complete, str) else flag.complete,
        }
        if flag.is_argument:
            info = typer.Argument(**shared)
        else:
            own = f"KVLITE_{self.long[2:].replace('-', '_').upper()}"
            variables = [*flag.variables] or ([own] if flag.from_settings else None)
            shared |= {"min": flag.min, "max": flag.max, "rich_help_panel": flag.heading, "show_envvar": False}
            shared |= {"allow_from_autoenv": flag.from_settings, "envvar": variables}
            shared |= {"is_eager": flag.first is not None}
            info = typer.Option(*self.decls, **shared | how)
        if get_origin(kind) is tuple:  # it may be given several times
            kind, default = list[get_args(kind)[0]] | None, None  # type: ignore[misc]
        default = Parameter.empty if default is MISSING else default
        return Parameter(self.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])

    def value(self, given: Any) -> Any:
        """The field's value for what Typer has read."""
        return tuple(given or ()) if get_origin(self.kind) is tuple else given


def from_flags(command: Callable[..., None], *more: Parameter) -> Callable[..., None]:
    """`command` as a function of one parameter per flag, and of those `more`, which it does not see.

    What `command` takes are dataclasses of options, the Invocation and typer's context:
    `def show(given: ShowOptions, options: Annotated[ModelOptions, only("revision")], call: Invocation) -> None`.
    """
    hints = {name: hint for name, hint in get_type_hints(command, include_extras=True).items() if name != "return"}
    groups = {name: _group(hint) for name, hint in hints.items() if hint not in (Invocation, typer.Context)}
    options = [option for _, group in groups.values() for option in group]
    defaults = {option.name: option.default for option in options}

    def run(ctx: typer.Context, **given: Any) -> None:
        call: Invocation = ctx.find_root().obj
        sources = {name: ctx.get_parameter_source(name) for name in given}
        call.sources = {
            name: _SOURCES.get(found.name, "default") if found else "default" for name, found in sources.items()
        }
        for option in options:
            if option.flag.against in given:
                pair = sorted((option.name, option.flag.against), key=lambda name: _STRENGTH.index(call.sources[name]))
                if call.sources[pair[0]] != call.sources[pair[1]]:
                    given[pair[0]], call.sources[pair[0]] = defaults[pair[0]], "default"
        around = {Invocation: call, typer.Context: ctx}
        arguments = {name: around[hint] for name, hint in hints.items() if name not in groups}
        for name, (kind, own) in groups.items():
            arguments[name] = kind(**{option.name: option.value(given[option.name]) for option in own})
        command(**arguments)

    parameters = [option.parameter() for option in options]
    context = Parameter("ctx", Parameter.KEYWORD_ONLY, annotation=typer.Context)
    run.__signature__ = Signature([context, *parameters, *more])  # type: ignore[attr-defined]
    run.__doc__ = command.__doc__
    return run


def program_flags() -> list[Parameter]:
    """The console's flags as they may stand after a command's name too: they add to what was given before it."""
    _, options = _group(Console)
    again = [option._replace(default=None, flag=option.flag._replace(heading="Program")) for option in options]
    return [option.parameter(expose_value=False, envvar=None, callback=_accept) for option in again]


def _group(hint: Any) -> tuple[type, list[_Option]]:
    """The dataclass of a parameter, and its options."""
    kind, taken = get_args(hint) if get_origin(hint) is Annotated else (hint, without())
    types = get_type_hints(kind)
    return kind, [
        _Option(one.name, types[one.name], taken.defaults.get(one.name, one.default), one.metadata["flag"])
        for one in fields(kind)
        if "flag" in one.metadata and taken.has(one.name)
    ]


def _accept(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> None:
    if value:
        setattr(ctx.find_root().obj.console, str(param.name), value)


def _callback(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return check


def _first(take: Callable[[Any, Any], None]) -> Callable[..., Any]:
    def called(ctx: typer.Context, value: Any) -> Any:
        if value is not None and not ctx.resilient_parsing:
            take(ctx, value)
        return value

    return called


def _complete_model(incomplete: str) -> list[str]:
    from kvlite.catalog.completion import complete_model

    return complete_model(incomplete)


def _complete_cached(incomplete: str) -> list[str]:
    from kvlite.catalog.completion import complete_model

    return complete_model(incomplete, is_cached=True)


def _complete_policy(incomplete: str) -> list[str]:
    from kvlite.cache.policy import policy_names

    *before, last = incomplete.split(",")
    return [",".join([*before, name]) for name in policy_names() if name.startswith(last)]


def _complete_format(incomplete: str) -> list[str]:
    from kvlite.memory.format import FORMATS

    return [name for name in ("auto", *FORMATS) if name.startswith(incomplete)]


_COMPLETERS = {
    "model": _complete_model,
    "cached": _complete_cached,
    "policy": _complete_policy,
    "format": _complete_format,
}
