"""A profile of a model's heads: the share of a text that each KV head needs, at several shares over all heads."""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kvlite.errors import UsageError
from kvlite.memory.shape import ModelShape

REFERENCE = 0.1
"""The share of a conversation at which the curve is read where nobody knows how long it will be."""

Needs = tuple[tuple[float, ...], ...]


class Point(BaseModel):
    """Needs `heads[layer][head]` where heads keep `share` of a text on average; () for other layers."""

    model_config = ConfigDict(frozen=True)

    share: float = Field(gt=0, le=1)
    heads: Needs


class HeadProfile(BaseModel):
    """The profile of the model whose weights have `fingerprint`; `points` are by ascending share."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["kvlite.profile/1"] = Field(default="kvlite.profile/1", alias="schema")
    fingerprint: str
    models: tuple[str, ...] = ()
    """Names under which these weights were loaded."""
    tokens: int = 0
    """Tokens of text it was measured on."""
    points: tuple[Point, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> HeadProfile:
        layouts = {tuple(map(len, point.heads)) for point in self.points}
        if len(layouts) > 1:
            raise ValueError("its points have different numbers of heads")
        if not all(0 < need <= 1 for point in self.points for layer in point.heads for need in layer):
            raise ValueError("a need is not above 0 and at most 1")
        if [point.share for point in self.points] != sorted({point.share for point in self.points}):
            raise ValueError("its shares do not ascend")
        return self

    def __call__(self, slots: int) -> Needs:
        """The relative needs of the heads, by layer and KV head, read at REFERENCE whatever `slots` they have.

        Read where the slots are, the curve answered fewer questions (docs/policies.md).
        """
        return self.at(REFERENCE)

    def at(self, share: float) -> Needs:
        """Every head's need where all keep `share` on average: between two points a straight line."""
        above = min(bisect_left([point.share for point in self.points], share), len(self.points) - 1)
        high, low = self.points[above], self.points[max(0, above - 1)]
        if high is low or share >= high.share:
            return high.heads
        part = (share - low.share) / (high.share - low.share)
        pairs = zip(low.heads, high.heads, strict=True)
        return tuple(tuple(a + part * (b - a) for a, b in zip(x, y, strict=True)) for x, y in pairs)

    def fits(self, shape: ModelShape) -> bool:
        """True where a model of this shape has the layers and heads that were measured."""
        wanted = tuple(layer.kv_heads if layer.kind == "full" else 0 for layer in shape.layers)
        return tuple(map(len, self.points[0].heads)) == wanted

    def require(self, shape: ModelShape, where: str) -> HeadProfile:
        """This profile. Raises UsageError where it is of a model with other layers or heads; `where` it came from."""
        if not self.fits(shape):
            raise UsageError(
                f"{where} is the profile of a model with other heads ({self}); `kvlite profile MODEL` makes this one's"
            )
        return self

    def known_as(self, name: str) -> HeadProfile:
        """The same profile, with one more name."""
        return self if name in self.models else self.model_copy(update={"models": (*self.models, name)})

    def to_json(self) -> str:
        """One line per point."""
        head = self.model_dump_json(by_alias=True, exclude={"points"}).removesuffix("}")
        return head + ',"points":[\n' + ",\n".join(point.model_dump_json() for point in self.points) + "\n]}\n"

    def __str__(self) -> str:
        layers = sum(map(bool, self.points[0].heads))
        return f"{self.models[0] if self.models else 'unnamed'}, {layers} layers"


def read_profile(path: Path) -> HeadProfile:
    """The profile in a file. Raises UsageError where there is none."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UsageError(
                f"{path} is no file; give auto, off or a file that `kvlite profile MODEL --export FILE` wrote"
            )
        return HeadProfile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the profile {path}: {error.strerror}; give auto, off or another file") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        why = f"{where}: {first['msg']}" if where else first["msg"]
        raise UsageError(f"{path} is no profile ({why}); `kvlite profile MODEL --export FILE` writes one") from error
