"""Decode steps through `torch.compile`: everything between two attentions as few kernels, attention on kvlite's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvlite.models.decoder import Decoder
from kvlite.models.fusing import TOLERANCE, probe_logits
from kvlite.models.gate import relative_error
from kvlite.models.loaded import COMPILED, LoadedModel


@dataclass(frozen=True, slots=True)
class CompiledDecoder:
    """`decoder`, of which one token per row runs as `step`, compiled; a chunk of a prompt runs as it is."""

    decoder: Decoder
    step: Callable[[Tensor, Tensor, int], Tensor]

    def __call__(self, ids: Tensor, positions: Tensor, last: int) -> Tensor:
        """As the decoder."""
        run = self.step if ids.shape[1] == 1 else self.decoder
        return run(ids, positions, last)


def compiled(loaded: LoadedModel) -> tuple[LoadedModel, str | None]:
    """The model with compiled decode steps and None, or as it is and why: verified by logits, like a patch."""
    if loaded.decoder is None:
        return loaded, f"{loaded.shape.family} models, or what is not fused, do not run as one function"
    try:
        step = torch.compile(loaded.decoder.__call__, fullgraph=True)
        candidate = replace(loaded, decoder=CompiledDecoder(loaded.decoder, step), fused=(*loaded.fused, COMPILED))
        off = relative_error(probe_logits(candidate), probe_logits(loaded))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, OSError) as error:
        return loaded, _reason(error)
    if not off <= TOLERANCE[loaded.compute_dtype]:
        return loaded, f"compiled logits differ by {off:.1%}"
    return candidate, None


def _reason(error: Exception) -> str:
    """The line of a compiler's complaint that says what is wrong: the one that names the innermost exception."""
    if "InvalidCxxCompiler" in str(error):
        return "no C++ compiler works here; install one, or name it in the variable CXX"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if line.partition(":")[0].isidentifier()]
    return (named or lines or [type(error).__name__])[0].rstrip(":")
