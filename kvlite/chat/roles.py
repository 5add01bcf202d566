"""Roles: files in the `roles` folder of the configuration, each a system prompt and settings to answer with."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from kvlite.errors import UsageError

SUFFIX = ".toml"


def role_folder() -> Path:
    """The folder of the user's roles, which need not exist."""
    from platformdirs import user_config_path

    return user_config_path("kvlite") / "roles"


def role_names() -> list[str]:
    """List the roles there are, sorted."""
    return sorted(path.stem for path in role_folder().glob(f"*{SUFFIX}") if path.is_file())


def read_role(name: str) -> dict[str, Any]:
    """Read a role: settings by their long names, `system` among them. Raises UsageError where there is none."""
    folder, names = role_folder(), role_names()
    file = folder / f"{name}{SUFFIX}"
    if name not in names:
        known = f"there are {', '.join(names)}" if names else f'{file} with a line  system = "…"  makes it one'
        raise UsageError(f"no role is called {name!r:.80}; {known}")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from error
