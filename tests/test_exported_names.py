"""The public names: a change of this list is a change of the contract."""

from __future__ import annotations

import subprocess
import sys

import kvlite
from kvlite import errors

NAMES = [
    "LLM",
    "Answer",
    "BrokenModel",
    "BudgetTooSmall",
    "CapacityError",
    "ContextFull",
    "DoesNotFit",
    "FinishReason",
    "GatedModel",
    "HubUnreachable",
    "KvliteError",
    "MissingPackage",
    "ModelError",
    "ModelNotFound",
    "NumericError",
    "OutOfMemory",
    "SlotsTooCoarse",
    "UnsupportedModel",
    "UsageError",
    "__version__",
]


def test_the_public_names_are_these() -> None:
    assert kvlite.__all__ == NAMES
    assert set(NAMES) <= set(dir(kvlite))


def test_each_name_is_there() -> None:
    assert all(getattr(kvlite, name) is not None for name in NAMES)
    assert not hasattr(kvlite, "Engine")


def test_every_error_that_is_no_commands_own_is_public() -> None:
    of_commands = {"OutputError", "BatchFailed", "GateFailed", "TimeLimit", "Interrupted", "Terminated"}
    found = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert found - of_commands <= set(NAMES)


def test_importing_the_package_and_its_door_loads_nothing_heavy() -> None:
    code = (
        "import sys, kvlite\n"
        "assert set(m for m in sys.modules if m.startswith('kvlite')) == {'kvlite', 'kvlite.errors'}\n"
        "from kvlite import LLM\n"
        "print(*{'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
