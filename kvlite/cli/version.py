"""Versions, read from package metadata so that nothing has to be imported."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "kvlite-llm"
_OTHERS = ("torch", "transformers", "huggingface-hub", "safetensors", "bitsandbytes", "triton")


def kvlite_version() -> str:
    """The installed version of kvlite."""
    return _version_of(DISTRIBUTION) or "unknown (not installed)"


def versions() -> dict[str, str | None]:
    """The versions of kvlite, Python and what kvlite stands on; None for what is not installed."""
    return {
        "kvlite": kvlite_version(),
        "python": platform.python_version(),
        **{name: _version_of(name) for name in _OTHERS},
        "cuda": _version_of("nvidia-cuda-runtime") or _version_of("nvidia-cuda-runtime-cu12"),
    }


def _version_of(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
