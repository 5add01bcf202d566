"""Chat with and batch-generate from Hugging Face models inside a fixed KV-cache byte budget.

    from kvlite import LLM

    with LLM("qwen2.5-0.5b", kv_budget="1GB") as llm:
        print(llm.chat("Hello!").text)

The names in `__all__` are the public ones. Loads nothing but the errors before one of the others is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvlite.errors import (
    BrokenModel,
    BudgetTooSmall,
    CapacityError,
    ContextFull,
    DoesNotFit,
    GatedModel,
    HubUnreachable,
    KvliteError,
    MissingPackage,
    ModelError,
    ModelNotFound,
    NumericError,
    OutOfMemory,
    SlotsTooCoarse,
    UnsupportedModel,
    UsageError,
)

if TYPE_CHECKING:
    from kvlite.engine.request import FinishReason
    from kvlite.llm import LLM
    from kvlite.llm.answer import Answer

    __version__: str

__all__ = [
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

_HOMES = {"LLM": "kvlite.llm", "Answer": "kvlite.llm.answer", "FinishReason": "kvlite.engine.request"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("kvlite-llm")
    raise AttributeError(f"module 'kvlite' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
