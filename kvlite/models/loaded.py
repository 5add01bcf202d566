"""A model ready to be fed: transformers' own modules under kvlite's attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvlite.cache.rotation import Rotation
from kvlite.cache.step import Step
from kvlite.memory.shape import ModelShape
from kvlite.models.apart import rows_apart
from kvlite.models.attention_interface import AttentionLayers, bound_cache
from kvlite.models.fused import FusedDecoder
from kvlite.models.hybrid import HybridState
from kvlite.models.quantised import compute_dtype
from kvlite.record.findings import Circumstances


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The model, what its layers hold, and how its keys rotate.

    `rotations` maps layers to their Rotation; None where the positions cannot be re-rotated, so that a conversation
    ends with the model's window. `state` is the constant-size state of hybrids, which then run one row at a time.
    `fused` names the patches in force, of which `decoder` is one; `refused` says what does not fit or was taken back,
    and why. `stages` are the seconds loading took, by stage; `fingerprint` names the weights, however they are stored.
    `about` is what a verdict on it depends on, None where none is kept; `remembered` says when an earlier start found
    what this one took over, else ""; `effects` are those of slot formats known by then: nats a token, and the share of
    first choices that stayed.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shape: ModelShape
    dtype: torch.dtype
    device: torch.device
    quant: str
    rotations: dict[int, Rotation | None] | None = None
    state: HybridState | None = None
    fused: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    decoder: FusedDecoder | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    fingerprint: str = ""
    about: Circumstances | None = None
    remembered: str = ""
    effects: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The coarsest dtype that takes part in the arithmetic."""
        return compute_dtype(self.dtype) if self.quant != "none" else self.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of parameters, their quantisation scales and buffers, measured on the tensors."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        tensors += [scale for parameter in self.model.parameters() for scale in _scales(parameter)]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())

    @property
    def window(self) -> int | None:
        """Number of positions the model was made for; None where it has no positions to run out of."""
        return self.shape.window

    @torch.inference_mode()
    def forward(self, ids: Tensor, cache: AttentionLayers, step: Step, last: int = 1) -> Tensor:
        """Feed ids int64 [n, T] to `cache` as `step` says and give the logits of the `last` positions, [n, last, V].

        Of none, that is of 0, the decoder computes none; the last dimension then means nothing.
        """
        own = ids.shape[1]
        with on(self.device), bound_cache(cache, step), rows_apart(step.turns is not None):
            positions = (step.rot.clamp(min=0) if min(step.counts) < own else step.rot).long()
            if self.decoder is not None:
                return self.decoder(ids, positions, slice(own - last, own))
            state: dict[str, Any] = {"use_cache": False}
            if self.state is not None:
                state = {"use_cache": True, "past_key_values": self.state}
            out = self.model(input_ids=ids, position_ids=positions, logits_to_keep=max(1, last), **state)
        logits: Tensor = out.logits
        return logits[:, logits.shape[1] - last :]

    @torch.inference_mode()
    def forward_packed(self, pieces: Sequence[tuple[Tensor, Step]], cache: AttentionLayers) -> Tensor:
        """Feed the ids int64 [n, T] of several steps in one pass and give the logits behind each row's newest, [n, V].

        No row has tokens in two steps. Padding costs as much as tokens. Not for models that carry state.
        """
        ids = torch.cat([given.flatten() for given, _ in pieces])[None]
        positions = torch.cat([step.rot.flatten() for _, step in pieces]).clamp(min=0).long()[None]
        widths = (given.shape[1] for given, _ in pieces for _ in range(given.shape[0]))
        kept = torch.tensor([end - 1 for end in accumulate(widths)], device=ids.device)
        with on(self.device), bound_cache(cache, *(step for _, step in pieces)):
            if self.decoder is not None:
                return self.decoder(ids, positions, kept)[0]
            out = self.model(input_ids=ids, position_ids=positions, logits_to_keep=kept, use_cache=False)
        logits: Tensor = out.logits
        return logits[0] if logits.shape[1] == len(kept) else logits[0, kept]


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one of this thread, which is where Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _scales(parameter: Tensor) -> list[Tensor]:
    """Tensors that bitsandbytes keeps beside a quantised weight: scales of blocks, nested or not, and of 8-bit rows."""
    state = getattr(parameter, "quant_state", None)
    states = [] if state is None else [state, getattr(state, "state2", None)]
    held = [getattr(part, name, None) for part in states for name in ("absmax", "code", "offset")]
    return [tensor for tensor in (*held, getattr(parameter, "SCB", None)) if isinstance(tensor, Tensor)]
