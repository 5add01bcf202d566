"""The chat loop: read a line, run a command or stream an answer, save, until the user leaves."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from kvlite.chat import slash_commands
from kvlite.chat.display import Display, answer_line
from kvlite.chat.interrupt import Interrupts
from kvlite.chat.session import Session
from kvlite.chat.session_files import SessionFile, SessionFolder, readable
from kvlite.errors import Interrupted, KvliteError, OutputError, Terminated, UsageError
from kvlite.llm.answer import Answer

if TYPE_CHECKING:
    from kvlite.chat.terminal import Terminal
    from kvlite.llm.chat_memory import ChatMemory
    from kvlite.text.stream import Piece

QUOTES = '"""'


class Pasted(str):
    """A text of which some was pasted: sent as it is, whatever it begins with."""

    __slots__ = ()


def message_of(line: str) -> str:
    """Strip the line, and the triple quotes typed around a text of several lines."""
    if isinstance(line, Pasted):
        return line.strip("\n")
    text = line.strip()
    if text.startswith(QUOTES):
        text = text.removeprefix(QUOTES).removesuffix(QUOTES)
    return text.strip()


def is_command(line: str) -> bool:
    """True where a line is a command: of what was pasted, only one line that begins with a command there is."""
    if not isinstance(line, Pasted):
        return line.startswith("/")
    word = line.strip().removeprefix("/").partition(" ")[0]
    return line.startswith("/") and "\n" not in line.strip() and word in slash_commands.BY_NAME


class Chat:
    """A session, the file in `folder` it is saved to, and the display; `model` is named in the file.

    The saved session `name` goes on under its own system prompt; where there is none, it begins.
    """

    def __init__(
        self,
        session: Session,
        memory: ChatMemory,
        folder: SessionFolder,
        display: Display,
        *,
        model: str,
        name: str | None = None,
        autosaves: bool = True,
    ) -> None:
        self.session = session
        self.memory = memory
        self.folder = folder
        self.is_over = False
        self._display = display
        self._console = display.console
        self._model = model
        self._autosaves = autosaves
        self._file: SessionFile | None = None
        self._interrupts = Interrupts()
        if name is not None:
            self._open(name)

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
        unsent = self.session.unsent
        try:
            if is_command(line):
                command, argument = slash_commands.find(readable(line).strip())
                command.run(self, argument)
            elif (message := readable(message_of(line))).strip():
                self.answer(self.session.ask(message))
        except (Interrupted, Terminated):
            raise
        except KvliteError as error:
            self._console.error(error)
        if self.session.unsent not in (None, unsent):
            self._console.note("your message got no answer and is no part of the chat; /retry asks it again")

    def answer(self, events: Generator[Piece | Answer]) -> None:
        """Show an answer as it comes, then its counts; save the conversation."""
        answer = self._display.show(events, self._interrupts, self.session.cancel)
        self._console.note(answer_line(answer))
        self._display.tell(answer)
        if self.session.has_looped:
            self._console.warn("the answer went round in circles and was stopped; rephrase, or /set temperature=0.7")
        self.save()

    def show(self, text: str) -> None:
        """Show the output of a command."""
        self._console.aside(f"{text}\n")

    def cache_changed(self, how: str) -> None:
        """Note that the cache is another one from now on."""
        self._display.recorder.changed(how)

    def start_over(self, system: str | None) -> None:
        """Forget the conversation, which stays in its file, and go on under this system prompt in a new one."""
        self.session.set_system(system)
        self._file = None

    def save(self) -> None:
        """Save the conversation where autosave is on; an error of the disk is a warning."""
        is_saved = self._file is not None and self._file.exists()  # then /undo of all turns is saved, too
        if self._autosaves and (self.session.num_turns or is_saved):
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

    def _open(self, name: str) -> None:
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
        self._file.save(self.session.messages, self._model)
        return self._file
