"""The chat loop: read a line, run a command or stream an answer, save, until the user leaves."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvlite.chat import slash_commands
from kvlite.chat.display import Display, answer_line, cut_notice, eviction_notice, show_answer
from kvlite.chat.interrupt import Interrupts
from kvlite.chat.session import Session
from kvlite.chat.session_files import SessionFile, SessionFolder, readable
from kvlite.errors import Interrupted, KvliteError, OutputError, Terminated, UsageError
from kvlite.llm.answer import Answer

if TYPE_CHECKING:
    from kvlite.chat.terminal import Terminal
    from kvlite.console import Console
    from kvlite.record.recorder import Recorder
    from kvlite.text.stream import Piece

QUOTES = '"""'


def message_of(line: str) -> str:
    """Strip the line, and the triple quotes around a text of several lines."""
    text = line.strip()
    if text.startswith(QUOTES):
        text = text.removeprefix(QUOTES).removesuffix(QUOTES)
    return text.strip()


@dataclass(frozen=True, slots=True)
class Keeping:
    """The folder of sessions, the model's name for their header, and autosave after every turn."""

    folder: SessionFolder
    model: str
    autosaves: bool


class Chat:
    """A session, the file it is saved to and the console it writes to."""

    def __init__(
        self, session: Session, keeping: Keeping, console: Console, recorder: Recorder, *, shows_thinking: bool
    ) -> None:
        self.session = session
        self.folder = keeping.folder
        self.is_over = False
        self._keeping = keeping
        self._console = console
        self._recorder = recorder
        self._shows_thinking = shows_thinking
        self._file: SessionFile | None = None
        self._interrupts = Interrupts()
        self._has_told_eviction = False

    def run(self, prompt: Terminal, first: str | None = None) -> None:
        """Read and handle lines until the user leaves; `first` is handled before any is read."""
        if first is not None:
            self.handle(first)
        while not self.is_over:
            self._interrupts.check()
            try:
                self.handle(prompt.read())
            except EOFError:
                self.is_over = True
            except KeyboardInterrupt:
                self._interrupts.press()

    def handle(self, line: str) -> None:
        """Run a command or send a message; an error of either is shown, and the chat goes on."""
        line, unsent = readable(line), self.session.unsent
        try:
            if line.startswith("/"):
                command, argument = slash_commands.find(line)
                command.run(self, argument)
            elif message := message_of(line):
                self.answer(self.session.ask(message))
        except (Interrupted, Terminated):
            raise
        except KvliteError as error:
            self._console.error(error)
        if self.session.unsent not in (None, unsent):
            self._console.note("your message got no answer and is no part of the chat; /retry asks it again")

    def answer(self, events: Generator[Piece | Answer]) -> None:
        """Show an answer as it comes, then its counts; save the conversation."""
        display = Display(self._console, shows_thinking=self._shows_thinking)
        answer = show_answer(events, display, self._interrupts, self.session.cancel, self._recorder)
        self._recorder.answered(answer.report(), answer.kv)
        self._console.note(answer_line(answer))
        if (notice := cut_notice(answer.completion)) is not None:
            self._console.warn(notice)
        if answer.kv.tokens_evicted and not self._has_told_eviction:
            self._has_told_eviction = True
            self._console.note(eviction_notice(answer.kv))
        self.save()

    def show(self, text: str) -> None:
        """Show the output of a command."""
        self._console.aside(f"{text}\n")

    def begin_file(self) -> None:
        """Save from now on to a new file; the conversation so far stays in its own."""
        self._file = None

    def save(self) -> None:
        """Save the conversation where autosave is on; an error of the disk is a warning."""
        is_saved = self._file is not None and self._file.exists()  # then /undo of all turns is saved, too
        if self._keeping.autosaves and (self.session.num_turns or is_saved):
            try:
                self._write()
            except OutputError as error:
                self._console.warn(str(error))

    def save_as(self, name: str) -> None:
        """Save, under `name` from now on if one is given. Raises UsageError where another session has that name."""
        if not self.session.num_turns:
            raise UsageError("nothing to save yet; ask something first")
        if name and (self._file is None or name != self._file.name):
            file = self.folder.file(name)
            if file.exists():
                raise UsageError(f"a session named {name} exists; choose another name")
            self._file = file
        self.show(f"saved as {self._write().name}")

    def load(self, name: str) -> None:
        """Continue a saved session. Raises UsageError where there is none of this name."""
        file = self.folder.file(name)
        self.session.load(file.load())
        self._file = file
        self.show(f"loaded {name}: {self.session.num_turns} turns, read by the model with your next message")

    def open(self, name: str) -> None:
        """Continue the session of this name under its own system prompt, or start one."""
        file = self.folder.file(name)
        if not file.exists():
            self._file = file
            return
        system = self.session.system
        self.load(name)
        if system not in (None, self.session.system):
            self.show("the saved session keeps its own system prompt; /system TEXT starts over under another")

    def _write(self) -> SessionFile:
        if self._file is None:
            self._file = self.folder.new_file()
        self._file.save(self.session.messages, self._keeping.model)
        return self._file
