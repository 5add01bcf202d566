"""How an attention turns its queries and keys, told from the functions it calls, not from the name of its family."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor, nn
from transformers.models.cohere import modeling_cohere
from transformers.models.ernie4_5 import modeling_ernie4_5
from transformers.models.glm import modeling_glm
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.helium import modeling_helium
from transformers.models.llama import modeling_llama
from transformers.models.olmo import modeling_olmo
from transformers.models.phi3 import modeling_phi3

from kvlite.models.same_forward import same

_FUNCTIONS = ("apply_rotary_pos_emb", "rotate_half")


@dataclass(frozen=True, slots=True)
class Turning:
    """The rotation that `module` of transformers has; see `kvlite_kernels.dense.rotate`.

    `spreads` says that its tables list the angles of neighbouring channels one pair after the other, twice.
    """

    module: ModuleType
    interleaved: bool = False
    spreads: bool = False

    def tables(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [B, T, R] of each channel's angle."""
        if not self.spreads:
            return cos, sin
        cos, sin = (table[..., : table.shape[-1] // 2].repeat_interleave(2, -1) for table in (cos, sin))
        return cos, sin


TURNINGS = (
    Turning(modeling_llama),
    Turning(modeling_olmo),  # in the tables' precision
    Turning(modeling_gpt_neox),  # of a part of the channels
    Turning(modeling_phi3),  # of a part, written otherwise
    Turning(modeling_cohere, interleaved=True),
    Turning(modeling_glm, interleaved=True, spreads=True),
    Turning(modeling_helium, interleaved=True, spreads=True),
    Turning(modeling_ernie4_5, interleaved=True, spreads=True),
)


def turning_of(attention: type[nn.Module]) -> Turning | None:
    """The rotation whose functions an attention's forward method finds beside it; None of one that is not known."""
    beside = inspect.unwrap(attention.forward).__globals__
    for turning in TURNINGS:
        if all(same(beside.get(name), getattr(turning.module, name)) for name in _FUNCTIONS):
            return turning
    return None


def turns(attention: type[nn.Module]) -> bool:
    """Whether an attention's forward method turns queries and keys at all."""
    return _FUNCTIONS[0] in inspect.unwrap(attention.forward).__code__.co_names
