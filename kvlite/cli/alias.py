"""`kvlite alias`: the user's own short names for models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from kvlite.cli.invocation import Invocation
from kvlite.errors import OutputError, UsageError
from kvlite.flags import argument

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kvlite.console import Console

_WRITTEN = "# The user's own names for models, written by `kvlite alias`.\n"


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    from kvlite.catalog.completion import complete_model
    from kvlite.catalog.own_aliases import own_aliases

    words = tuple(ctx.params.get("words") or ())
    if words[:1] == ("set",) and len(words) == 2:
        return complete_model(incomplete)
    found = _ACTIONS if not words else own_aliases() if words[0] in ("set", "rm") else ()
    return [word for word in found if word.startswith(incomplete)]


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasOptions:
    """The word that says what to do, and what it takes."""

    words: tuple[str, ...] = argument(
        (),
        metavar="ls|set|rm",
        complete=_complete,
        help="ls, set NAME MODEL, rm NAME; a name stands for an alias, org/name[:quant][@revision], folder or file.",
    )


def alias(given: AliasOptions, call: Invocation) -> None:
    """List your own short names for models, give one, or take one away; they count wherever a model is named."""
    word, *rest = given.words or ("ls",)
    if word not in _ACTIONS:
        raise UsageError(f"alias knows no {word!r}; give {', '.join(_ACTIONS)}")
    _ACTIONS[word](call.console, rest)


def _list(out: Console, words: Sequence[str]) -> None:
    from kvlite.catalog.own_aliases import own_aliases

    if words:
        raise UsageError(f"alias ls takes no name, not {words[0]!r}")
    own = own_aliases()
    if out.as_json:
        out.json(own, indent=2)
    elif out.quiet:
        for name in own:
            out.line(name)
    else:
        out.table(("NAME", "MODEL"), [*own.items()])
        out.note("`kvlite ls --aliases` lists the names that kvlite brings")


def _set(out: Console, words: Sequence[str]) -> None:
    from kvlite.catalog.names import DEMO, fold, resolve_model
    from kvlite.catalog.own_aliases import NAME, own_aliases

    if len(words) != 2:
        raise UsageError("alias set takes a name and a model, as in: kvlite alias set fast qwen2.5-0.5b")
    name, asked = fold(words[0]), words[1].strip()
    if not NAME.fullmatch(name) or name == DEMO:
        why = (
            "is the built-in model" if name == DEMO else "is no name for a model; use letters, digits, '.', '_' and '-'"
        )
        raise UsageError(f"{words[0]!r:.80} {why}")
    own = own_aliases()
    found = resolve_model(asked)
    model = own.get(fold(asked), asked)  # a name for a name stands for what that stands for now
    if found.path is not None and found.alias is None:
        model = str(found.path)  # from wherever it is used
    _write(own | {name: model})
    out.note(f"{name} stands for {model}")


def _remove(out: Console, words: Sequence[str]) -> None:
    from kvlite.catalog.names import fold
    from kvlite.catalog.own_aliases import own_aliases

    if not words:
        raise UsageError("alias rm takes a name; `kvlite alias` lists them")
    own, names = own_aliases(), [fold(word) for word in words]
    missing = next((word for word, name in zip(words, names, strict=True) if name not in own), None)
    if missing is not None:
        raise UsageError(f"you have no alias {missing!r:.80}; `kvlite alias` lists them")
    _write({name: model for name, model in own.items() if name not in names})
    out.note(f"{', '.join(names)} removed")


def _write(own: Mapping[str, str]) -> None:
    from kvlite.catalog.own_aliases import own_aliases_file
    from kvlite.record.store import write_whole

    file = own_aliases_file()
    lines = [f"{json.dumps(name)} = {json.dumps(model, ensure_ascii=False)}\n" for name, model in sorted(own.items())]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole("".join([_WRITTEN, *lines]), file)
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror}") from error


_ACTIONS: dict[str, Callable[[Console, Sequence[str]], None]] = {"ls": _list, "set": _set, "rm": _remove}
