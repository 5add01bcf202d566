"""`kvlite chat`: a conversation at a terminal; with a pipe on stdin it answers that and ends, as `run` does."""

from __future__ import annotations

import gc
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

from kvlite.cli.invocation import Invocation
from kvlite.cli.role import RoleOptions
from kvlite.cli.sessions import complete_session
from kvlite.cli.signature import without
from kvlite.console import is_terminal
from kvlite.errors import KvliteError, UsageError
from kvlite.flags import option, read_text
from kvlite.options import BUILT_IN_MODEL, AnswerOptions, ModelOptions, OutputOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvlite.catalog.model_files import ModelFiles
    from kvlite.chat.display import AnswerFormat
    from kvlite.chat.loop import Chat, Opened
    from kvlite.chat.session import Session
    from kvlite.cli.answering import Answering
    from kvlite.llm.spec import RunSpec
    from kvlite.memory.counts import KVCounts
    from kvlite.record.recorder import Recorder


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """The session, and the look of the chat."""

    continues: bool = option(False, "-c", "--continue", from_settings=False, help="Go on with the last saved session.")
    session: str | None = option(
        None,
        metavar="NAME",
        complete=complete_session,
        from_settings=False,
        help="Go on with this session, or begin it.",
    )
    save: bool = option(True, help="Save the session after each turn.")
    save_kv: bool = option(True, help="Save the cache beside the session, so that it goes on without being read again.")
    prompt: str | None = option(
        None, "-p", metavar="TEXT", from_settings=False, parse=read_text, help="What to ask first."
    )
    vi: bool = option(False, help="Edit with vi's keys.")
    status: bool = option(True, help="Show the cache under the prompt and the answer.")
    markdown: bool = option(True, help="Draw an answer's Markdown on a terminal.")


def chat(
    given: ChatOptions,
    _: RoleOptions,
    answer: Annotated[AnswerOptions, without("logprobs")],
    options: Annotated[ModelOptions, without("kv_per_seq")],
    output: OutputOptions,
    call: Invocation,
) -> None:
    """Talk with a model. /help lists what else can be done there; Ctrl-C stops an answer, Ctrl-D leaves."""
    from kvlite.chat.display import AnswerFormat
    from kvlite.cli.answering import Answering, answer_once
    from kvlite.cli.prompts import build_prompt
    from kvlite.deadline import Deadline

    out = call.console
    asked = Answering(call.with_model(options), answer, output.report, call)
    form = AnswerFormat(as_json=out.as_json, shows_thinking=output.show_thinking)
    if is_terminal(sys.stdin):
        if out.as_json:
            raise UsageError("a chat at a terminal has no --json; use kvlite run --json, or pipe the question in")
        name = _session_to_open(given.continues, given.session)
        call.announce_unnamed(options.model)
        if options.model is None and asked.options.model == BUILT_IN_MODEL and not out.quiet:
            from kvlite.cli.known_models import show_first

            show_first(out)
        _talk(asked, given, name, form)
        return
    if given.continues or given.session:
        raise UsageError("--continue and --session need a terminal to go on at; stdin is a pipe here")
    words = [] if given.prompt is None else [given.prompt]
    text = build_prompt(words, [])
    call.announce_unnamed(options.model)
    answer_once(asked, text, form, Deadline(None), command="chat")


def _session_to_open(continues: bool, session: str | None) -> str | None:
    """The name of the session to go on with, None for a new one; raises UsageError before anything is loaded."""
    from kvlite.chat.session_files import SessionFolder

    folder = SessionFolder()
    if continues and session is not None:
        raise UsageError("--continue contradicts --session: one is the last session, the other a named one")
    if continues:
        saved = folder.saved()
        if not saved:
            raise UsageError(f"no session to continue in {folder.folder}; start one without --continue")
        return saved[0].name
    if session is not None:
        folder.file(session)
    return session


class _Talking:
    """A chat at a terminal: what it is opened with, and what is opened."""

    def __init__(self, asked: Answering, given: ChatOptions, form: AnswerFormat, recorder: Recorder) -> None:
        from platformdirs import user_state_path

        from kvlite.chat.terminal import Terminal

        self.asked, self.given, self.form, self.recorder = asked, given, form, recorder
        self.session: Session | None = None
        self._since_s, self._doing = time.monotonic(), ""
        history = user_state_path("kvlite", appauthor=False) / "history"
        self.terminal = Terminal(self._status if given.status else None, history, vi=given.vi)

    def begin(self, spec: RunSpec, files: ModelFiles | None, name: str | None) -> Chat:
        """Load the model and open the chat."""
        from kvlite.chat.display import Display
        from kvlite.chat.live import LiveLines
        from kvlite.chat.loop import Chat
        from kvlite.chat.screen import Screen
        from kvlite.chat.session_files import SessionFolder

        out, given, screen = self.asked.call.console, self.given, None
        opened = self._open(spec, files)
        if out.is_terminal and out.has_live_stderr:
            lines = LiveLines(out, self._counts if given.status else None, self.terminal.ahead)
            screen = Screen(out, lines, draws_markdown=given.markdown, has_color=out.has_color)
        return Chat(
            opened,
            SessionFolder(),
            Display(out, self.recorder, self.form, screen),
            opens=self._other,
            name=name,
            autosaves=given.save,
            keeps_cache=given.save_kv,
        )

    def _open(self, spec: RunSpec, files: ModelFiles | None) -> Opened:
        from kvlite.chat.gauge import drawn_line
        from kvlite.chat.loop import Opened
        from kvlite.chat.session import Session
        from kvlite.llm.chat_memory import ChatMemory

        self.session = None
        gc.collect()  # a model that was here before
        llm = self.asked.open(spec, self.recorder, files, is_chat=True, doing=self._begin)
        settings = self.asked.settings(llm, is_chat=True)
        if not settings.sampling.is_greedy:
            self.asked.call.console.note(drawn_line(settings.sampling))
        self.session = Session(llm.engine, llm.model.text, settings, self.asked.answer.system)
        return Opened(
            self.session, ChatMemory(llm, self.session.conversation), llm.model.name, spec.options.model or ""
        )

    def _other(self, model: str) -> Callable[[], Opened]:
        """Find another model, and give the function that loads it."""
        from kvlite.llm.spec import RunSpec

        spec = RunSpec.of(replace(self.asked.options, model=model))
        files = spec.files(self.asked.call.console.note)
        return lambda: self._open(spec, files)

    def _begin(self, work: str) -> None:
        self._doing = work

    def _counts(self) -> KVCounts:
        assert self.session is not None
        return self.session.counts()

    def _status(self) -> str:
        from kvlite.chat.gauge import status_line

        session = self.session
        if session is None:
            seconds = f"{time.monotonic() - self._since_s:.0f} s"
            return ", ".join(filter(None, [f"{self.asked.options.model} is loading", self._doing, seconds]))
        return status_line(session.counts(), session.last, session.settings.sampling, get_terminal_size().columns)


def _talk(asked: Answering, given: ChatOptions, name: str | None, form: AnswerFormat) -> None:
    from kvlite.llm.spec import RunSpec

    out, first = asked.call.console, given.prompt
    with asked.call.start_recorder("chat", asked.report) as recorder:
        talking, spec = _Talking(asked, given, form, recorder), RunSpec.of(asked.options)
        if first is None and out.has_live_stderr:
            files = spec.files(out.note)
            begun = talking.terminal.read_beside(lambda: talking.begin(spec, files, name), out)
            if begun is None:
                return
            first, chat = begun
        else:
            chat = talking.begin(spec, None, name)
        try:
            chat.run(talking.terminal, first)
        finally:
            chat.close()
            if chat.has_model:
                recorder.term("checkpoints", chat.session.checkpoint_peak_bytes)
                with suppress(KvliteError):
                    recorder.turns(chat.memory.turns())
