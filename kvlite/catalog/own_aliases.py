"""The user's own short names for models: aliases.toml in the configuration folder, a name and what it stands for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from kvlite.errors import UsageError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""An own alias as the file has it; case does not matter, and `:` reads as `-`."""


def own_aliases_file() -> Path:
    """The file of the user's aliases, which need not exist."""
    from platformdirs import user_config_path

    return user_config_path("kvlite") / "aliases.toml"


def own_aliases() -> dict[str, str]:
    """Read the user's aliases and the models they stand for. Raises UsageError where the file is no table of them."""
    file = own_aliases_file()
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not valid TOML: {error}; mend or delete it") from error
    for name, model in table.items():
        if not NAME.fullmatch(name) or not isinstance(model, str) or not model.strip():
            raise UsageError(f'{file}: {name} is no alias; a line is  name = "model", the name in small letters')
    return table
