"""The option `--role`: the user's settings for one kind of conversation, its system prompt among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from kvlite.flags import option

if TYPE_CHECKING:
    from kvlite.cli.invocation import Invocation


def _complete(incomplete: str) -> list[str]:
    from kvlite.chat.roles import role_names

    return [name for name in role_names() if name.startswith(incomplete)]


def take_role(ctx: typer.Context, name: str) -> None:
    """Let a role's settings count before those of files, after those of flags and variables; its model before both."""
    from kvlite.cli.settings import role_settings

    settings = role_settings(ctx, name)
    call: Invocation = ctx.find_root().obj
    call.default_model = settings.pop("model", call.default_model)
    weaker = {**(ctx.default_map or {})}
    if "temperature" in settings:
        weaker.pop("greedy", None)
    ctx.default_map = weaker | settings


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleOptions:
    """The role in which is answered."""

    role: str | None = option(
        None,
        metavar="NAME",
        complete=_complete,
        from_settings=False,
        first=take_role,
        help="Answer by roles/NAME.toml of the configuration folder: a system prompt and other settings.",
    )
