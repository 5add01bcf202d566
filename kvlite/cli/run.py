"""`kvlite run`: one prompt, one answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvlite.cli import options as opt


def _complete_word(ctx: typer.Context, incomplete: str) -> list[str]:
    from kvlite.catalog.completion import complete_model

    is_model = not ctx.params.get("words") and ctx.params.get("model") is None
    return list(complete_model(incomplete)) if is_model else []


def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [PROMPT]...",
            help="The model, unless -m names it, and the prompt; - is stdin.",
            autocompletion=_complete_word,
        ),
    ] = None,
    model: opt.ModelOption = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("-f", "--file", metavar="FILE", allow_from_autoenv=False, help="Put this text before the prompt."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option("--template", metavar="TEXT", help="Build the prompt of {stdin}, {file} and {prompt}."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template: continue the prompt as it is.")] = False,
    extract: Annotated[bool, typer.Option("-x", "--extract", help="Print only the first code block.")] = False,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Print as it comes, or all at once.")
    ] = None,
    show_time: Annotated[bool, typer.Option("--time", help="Say on stderr how long it took.")] = False,
    max_time: Annotated[
        float | None, typer.Option("--max-time", metavar="SECONDS", help="Stop after this long (exit 124).")
    ] = None,
    system: opt.System = None,
    max_tokens: opt.MaxTokens = None,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    min_p: opt.MinP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    greedy: opt.Greedy = False,
    think: opt.Think = None,
    show_thinking: opt.ShowThinking = False,
    report: opt.Report = None,
    kv_budget: opt.KvBudget = None,
    kv_policy: opt.KvPolicy = None,
    kv_dtype: opt.KvDtype = None,
    on_full: opt.OnFull = None,
    pin_system: opt.PinSystem = True,
    prefill_chunk: opt.PrefillChunk = None,
    quant: opt.Quant = None,
    four_bit: opt.FourBit = False,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
    trust_remote_code: opt.TrustRemoteCode = False,
    allow_pickle: opt.AllowPickle = False,
    fuse: opt.Fuse = True,
    kernels: opt.Kernels = "auto",
    capture: opt.Capture = None,
    offline: opt.Offline = False,
) -> None:
    """Answer one prompt: stdin first, then files, then the words, a blank line between them."""
    from kvlite.chat.once import Output
    from kvlite.cli.answering import Asked, answer_once, source_of
    from kvlite.cli.prompts import STDIN, build_prompt, split_words
    from kvlite.deadline import Deadline

    out = opt.console()
    deadline = Deadline(max_time)
    with deadline.running():
        whole = extract or out.as_json
        output = Output(
            streams=not whole if stream is None else stream,
            extracts=extract,
            as_json=out.as_json,
            shows_thinking=show_thinking,
            shows_time=show_time,
        )
        sampling = opt.sampling(
            greedy=greedy,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        default = opt.default_model() or opt.BUILT_IN_MODEL
        name, rest = split_words(words or [], model, default, out)
        prompt = build_prompt(rest, file or [], template)
        if rest == (words or []) and rest[:1] in ([], [STDIN]):  # of any other first word, split_words has said it
            opt.announce_built_in(model)
        options = opt.model_options(
            model=name,
            kv_budget=kv_budget,
            kv_policy=kv_policy,
            kv_dtype=kv_dtype,
            on_full=on_full,
            pin_system=pin_system,
            prefill_chunk=prefill_chunk,
            quant=quant,
            four_bit=four_bit,
            dtype=dtype,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            fuse=fuse,
            kernels=kernels,
            capture=capture,
            offline=offline,
            think=think,
        )
        asked = Asked(
            options=options,
            sampling=sampling,
            system=system,
            max_tokens=max_tokens,
            stop=tuple(stop or ()),
            report=report or "auto",
            budget_source=source_of("kv_budget"),
        )
        answer_once(asked, prompt, output, deadline, raw=raw)
