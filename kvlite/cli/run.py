"""`kvlite run`: one prompt, one answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from kvlite.cli.invocation import Invocation
from kvlite.cli.role import RoleOptions
from kvlite.cli.signature import without
from kvlite.errors import UsageError
from kvlite.flags import argument, option, read_seconds, read_text
from kvlite.options import AnswerOptions, ModelOptions, OutputOptions, model_option


def _complete_word(ctx: typer.Context, incomplete: str) -> list[str]:
    from kvlite.catalog.completion import complete_model

    is_model = not ctx.params.get("words") and ctx.params.get("model") is None
    return list(complete_model(incomplete)) if is_model else []


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The prompt, and the form of the printed answer."""

    words: tuple[str, ...] = argument(
        (),
        metavar="[MODEL] [PROMPT]...",
        parse=read_text,
        complete=_complete_word,
        help="The model, unless -m names it, and the prompt; - is stdin.",
    )
    model: str | None = model_option()
    file: tuple[Path, ...] = option(
        (), "-f", metavar="FILE", from_settings=False, help="Put this text before the prompt."
    )
    raw: bool = option(False, help="No chat template: continue the prompt as it is.")
    extract: bool = option(False, "-x", help="Print only the first code block.")
    show_time: bool = option(False, "--time", help="Say on stderr how long it took.")
    max_time: float | None = option(
        None, metavar="SECONDS", parse=read_seconds, help="Stop after this long (exit 124)."
    )


def run(
    given: RunOptions,
    _: RoleOptions,
    answer: AnswerOptions,
    options: Annotated[ModelOptions, without("model", "kv_per_seq")],
    output: OutputOptions,
    call: Invocation,
) -> None:
    """Answer one prompt: stdin first, then files, then the words, a blank line between them."""
    from kvlite.chat.display import AnswerFormat
    from kvlite.cli.answering import Answering, answer_once
    from kvlite.cli.prompts import STDIN, build_prompt, split_words
    from kvlite.deadline import Deadline

    out = call.console
    if answer.logprobs is not None and not out.as_json:
        raise UsageError("--logprobs are part of the JSON; give --json too")
    deadline = Deadline(given.max_time)
    with deadline.running():
        form = AnswerFormat(
            extracts=given.extract,
            as_json=out.as_json,
            shows_thinking=output.show_thinking,
            shows_time=given.show_time,
        )
        asked = Answering(options, answer, output.report, call)
        name, rest = split_words(given.words, given.model, call.with_model(options).model, out)
        prompt = build_prompt(rest, given.file)
        if rest == [*given.words] and rest[:1] in ([], [STDIN]):  # of any other first word, split_words has said it
            call.announce_unnamed(given.model)
        asked = replace(asked, options=replace(options, model=name))
        answer_once(asked, prompt, form, deadline, raw=given.raw)
