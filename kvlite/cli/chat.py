"""`kvlite chat`: a conversation at a terminal; with a pipe on stdin it answers that and ends, as `run` does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from kvlite.cli import options as opt
from kvlite.errors import UsageError

if TYPE_CHECKING:
    from kvlite.catalog.files import ModelFiles
    from kvlite.catalog.names import ModelRef
    from kvlite.cli.answering import Asked


def chat(
    model: opt.ModelArg = None,
    continues: Annotated[
        bool, typer.Option("-c", "--continue", allow_from_autoenv=False, help="Go on with the last saved session.")
    ] = False,
    session: Annotated[
        str | None,
        typer.Option(
            "--session", metavar="NAME", allow_from_autoenv=False, help="Go on with this session, or begin it."
        ),
    ] = None,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Save the session after each turn.")] = True,
    prompt: Annotated[
        str | None,
        typer.Option("-p", "--prompt", metavar="TEXT", allow_from_autoenv=False, help="What to ask first."),
    ] = None,
    vi: Annotated[bool, typer.Option("--vi", help="Edit with vi's keys.")] = False,
    status: Annotated[bool, typer.Option("--status/--no-status", help="Show the cache under the prompt.")] = True,
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
    """Talk with a model. /help lists what else can be done there; Ctrl-C stops an answer, Ctrl-D leaves."""
    from kvlite.chat.once import Output
    from kvlite.cli.answering import Asked, answer_once, has_user, source_of
    from kvlite.cli.prompts import build_prompt
    from kvlite.deadline import Deadline

    out = opt.console()
    sampling = opt.sampling(
        greedy=greedy,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    options = opt.model_options(
        model=model,
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
    if has_user():
        if out.as_json:
            raise UsageError("a chat at a terminal has no --json; use kvlite run --json, or pipe the question in")
        screen = _Screen(vi=vi, shows_status=status, shows_thinking=show_thinking, saves=save)
        opens = _session_to_open(continues, session)
        opt.announce_built_in(model)
        _talk(asked, screen, opens, prompt)
        return
    if continues or session:
        raise UsageError("--continue and --session need a terminal to go on at; stdin is a pipe here")
    words = [] if prompt is None else [prompt]
    output = Output(streams=not out.as_json, as_json=out.as_json, shows_thinking=show_thinking)
    text = build_prompt(words, [], None)
    opt.announce_built_in(model)
    answer_once(asked, text, output, Deadline(None), command="chat")


@dataclass(frozen=True, slots=True)
class _Screen:
    """How the chat shows itself, and whether it is saved."""

    vi: bool
    shows_status: bool
    shows_thinking: bool
    saves: bool


def _session_to_open(continues: bool, session: str | None) -> str | None:
    """The name of the session to go on with, None for a new one; raises UsageError before anything is loaded."""
    from kvlite.chat.store import SessionFolder

    folder = SessionFolder()
    if continues and session is not None:
        raise UsageError("--continue contradicts --session: one is the last session, the other a named one")
    if continues:
        saved = folder.saved()
        if not saved:
            raise UsageError(f"no session to continue in {folder.folder}; start one without --continue")
        return saved[0].name
    if session is not None:
        folder.path(session)
    return session


def _talk(asked: Asked, screen: _Screen, name: str | None, first: str | None) -> None:
    from platformdirs import user_state_path

    from kvlite.chat.behind import Behind
    from kvlite.chat.commands import LEAVING
    from kvlite.chat.loop import Chat, Keeping
    from kvlite.chat.session import Session
    from kvlite.chat.status import status_line
    from kvlite.chat.store import SessionFolder
    from kvlite.chat.terminal import Terminal
    from kvlite.cli.loading import find_files

    out = opt.console()
    session: Session | None = None

    def status() -> str:
        if session is None:
            return f"{asked.options.model} is loading"
        return status_line(session.counts(), session.last, session.settings.sampling)

    def begin(found: tuple[ModelRef, ModelFiles] | None = None) -> Chat:
        nonlocal session
        opened = asked.open(recording, out, found)
        session = Session(opened.engine, opened.text, asked.settings(opened), asked.system)
        keeping = Keeping(SessionFolder(), opened.name, screen.saves)
        chat = Chat(session, keeping, out, recording, shows_thinking=screen.shows_thinking)
        if name is not None:
            chat.open(name)
        return chat

    history = user_state_path("kvlite", appauthor=False) / "history"
    terminal = Terminal(status if screen.shows_status else None, history, vi=screen.vi)
    with asked.recording("chat") as recording:
        if first is None and out.has_live_stderr:
            found = find_files(asked.options, out)
            loading = Behind(lambda: begin(found), terminal, out)
            first = loading.line()
            if first is None or first.strip() in LEAVING:
                return
            chat = loading.result()
        else:
            chat = begin()
        try:
            chat.run(terminal, first)
        finally:
            recording.checkpoints(chat.session.checkpoint_peak_bytes)
