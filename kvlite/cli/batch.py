"""`kvlite batch`: many prompts from a file or a pipe, one record each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from kvlite.cli.invocation import Invocation
from kvlite.cli.signature import only, without
from kvlite.errors import ModelNotFound, UsageError
from kvlite.options import AnswerOptions, BatchOptions, ModelOptions, OutputOptions, worker_devices

if TYPE_CHECKING:
    from kvlite.batch.model import Model


def batch(
    given: BatchOptions,
    answer: AnswerOptions,
    options: Annotated[ModelOptions, without("model")],
    output: Annotated[OutputOptions, only("report")],
    call: Invocation,
) -> None:
    """Answer every line of INPUT; killed at any moment, the same command goes on where it stopped.

    What a line says for itself (temperature, max_tokens, stop, ...) wins over the flags here; an answer that nobody
    limits ends after 1,024 tokens. Without -m the lines name the model. Exit code 5 means that some lines failed: their
    records say why.
    """

    if given.ray is not None and given.devices is not None:
        raise UsageError(f"--ray {given.ray} contradicts --devices {given.devices}; give one of them")
    if given.ray is None and call.sources["workers"] == "flag":
        raise UsageError(f"--workers {given.workers} needs --ray; on this machine give --devices")
    if given.devices is not None:
        if call.is_given("device"):
            raise UsageError(f"--devices {given.devices} contradicts --device {options.device}; give one of them")
        options = replace(options, device=worker_devices(given.devices)[0])  # what a plan is for

    def choose(from_lines: str | None) -> Model:
        from kvlite.batch.model import Model
        from kvlite.catalog.names import STARTER
        from kvlite.llm.spec import RunSpec

        named = from_lines if given.model is None else given.model
        if named is None and not call.default_model:
            raise ModelNotFound(f"a batch needs a model: give -m MODEL (such as {STARTER}), or lines that name one")
        spec = RunSpec.of(call.with_model(options if named is None else replace(options, model=named)))
        return Model(
            spec,
            batch_size="auto" if given.batch_size == "auto" else int(given.batch_size),
            console=call.console,
            required=None if given.model is not None else spec.options.model,
            budget_source=call.sources["kv_budget"],
        )

    if given.repair:
        from kvlite.batch.repair import repair

        if given.output is not None:
            raise UsageError("--repair mends the output file that is given in place of INPUT; leave out -o")
        repair(given.input, call.console)
    elif given.dry_run:
        from kvlite.batch.dry_run import dry_run

        dry_run(given, answer, choose, call.console)
    else:
        from kvlite.batch.batch import Batch

        Batch(given, answer, choose, call.console, call.start_recorder("batch", output.report)).run()
