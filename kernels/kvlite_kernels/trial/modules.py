"""The trial of FusedOps: what a layer computes between its products, in the model's sizes and dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kvlite_kernels.fused_ops import ACTIVATIONS, TORCH_OPS, FusedOps, Norm
from kvlite_kernels.trial.judge import gain, poisoned, require_close, require_repeatable
from kvlite_kernels.trial.task import Task

OpsOf = Callable[[torch.device], FusedOps]

ROWS = 2
TOKENS = (1, 40)


def try_modules(task: Task, ops: FusedOps, tell: Callable[[str], None], clock: Callable[[], float]) -> float:
    """The speed of a layer's operations over that of torch. Raises Fault where one is wrong; each is told before."""
    for tokens in TOKENS:
        given, wide = Given.made(task, tokens, task.number), Given.made(task, tokens, torch.float64)
        ways = zip(given.runs(ops), given.runs(TORCH_OPS), wide.runs(TORCH_OPS), strict=True)
        for (name, ours), (_, twin), (_, exact) in ways:
            tell(f"{name}, {tokens} tokens")
            with poisoned():
                for got, theirs, wanted in zip(ours(), twin(), exact(), strict=True):
                    require_close(name, got, theirs, wanted, task.number)
                require_repeatable(name, ours, task.repeats)
    tell("speed of modules")
    one = Given.made(task, 1, task.number)

    def layer(ops: FusedOps) -> None:
        for name, run in one.runs(ops):
            if name in OF_A_LAYER:
                run()

    return gain(lambda: layer(TORCH_OPS), lambda: layer(ops), task.place, task.captures, clock)


OF_A_LAYER = ("sum and norm", "rotation", "gate silu")


class Given:
    """The inputs of every operation: halves are the same numbers in each dtype that is at least as wide."""

    def __init__(self, task: Task, tokens: int, normal: Callable[..., Tensor]) -> None:
        query_heads, kv_heads, dim, _ = task.heads[0]
        self.x, self.residual = normal(ROWS, tokens, task.hidden), 3 * normal(ROWS, tokens, task.hidden)
        self.after, self.before = (Norm(1 + normal(task.hidden) / 4, 1e-6) for _ in range(2))
        self.heads = normal(ROWS, tokens, query_heads + 2 * kv_heads, dim)
        self.counts = query_heads, kv_heads
        width = dim - dim % 2
        self.cos, self.sin = normal(ROWS, tokens, width).cos(), normal(ROWS, tokens, width).sin()
        self.cos[..., width // 2 :], self.sin[..., width // 2 :] = (x[..., : width // 2] for x in (self.cos, self.sin))
        self.of_heads = Norm(1 + normal(dim) / 4, 1e-6), Norm(1 + normal(dim) / 4, 1e-6)
        self.gate_up = normal(ROWS, tokens, 2 * task.intermediate)

    @classmethod
    def made(cls, task: Task, tokens: int, dtype: torch.dtype) -> Given:
        """The same numbers each time, as `dtype` holds those of the task's."""
        generator = torch.Generator().manual_seed(tokens)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(task.number).to(task.place, dtype)

        return cls(task, tokens, normal)

    def runs(self, ops: FusedOps) -> Iterator[tuple[str, Callable[[], tuple[Tensor, ...]]]]:
        """Every operation by name, ready to run."""
        x, residual = self.x, self.residual
        yield "norm", lambda: (ops.rms_norm(x, self.after),)
        yield "sum and norm", lambda: ops.add_norm(x, residual, self.after)
        yield "norm, sum and norm", lambda: ops.add_norm(x, residual, self.after, self.before)
        yield "norm and sum", lambda: (ops.norm_add(x, residual, self.before),)
        yield "rotation", lambda: (ops.rotate(self.heads, self.counts, self.cos, self.sin),)
        yield "norm and rotation", lambda: (ops.rotate(self.heads, self.counts, self.cos, self.sin, self.of_heads),)
        for name in ACTIVATIONS:
            yield f"gate {name}", lambda name=name: (ops.gated(self.gate_up, name),)  # type: ignore[misc]
