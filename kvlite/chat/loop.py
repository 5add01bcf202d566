"""The chat loop: read a line, run a command or stream an answer, save, until the user leaves."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvlite.chat import slash_commands
from kvlite.chat.attachments import missing_files, with_files
from kvlite.chat.display import Display, answer_line
from kvlite.chat.interrupt import Interrupts
from kvlite.chat.saving import Saving
from kvlite.chat.session import Session
from kvlite.chat.session_files import SessionFolder, readable
from kvlite.errors import Interrupted, KvliteError, Terminated
from kvlite.llm.answer import Answer
from kvlite.memory.format import counted

if TYPE_CHECKING:
    from kvlite.chat.terminal import Terminal
    from kvlite.llm.chat_memory import ChatMemory
    from kvlite.text.stream import Piece

QUOTES = '"""'
SHOWN_LINES = 6  # of a message, where a saved session goes on


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


@dataclass(frozen=True, slots=True)
class Opened:
    """A session with a model that is loaded, and what is known of its memory.

    `model` is how files name it, `asked` how the user did.
    """

    session: Session
    memory: ChatMemory
    model: str
    asked: str


class Chat:
    """A conversation with the model that is `opened`, saved in `folder` and shown by `display`.

    The saved session `name` goes on under its own system prompt; where there is none, it begins. `opens` finds another
    model, and gives the function that loads it.
    """

    def __init__(
        self,
        opened: Opened,
        folder: SessionFolder,
        display: Display,
        *,
        opens: Callable[[str], Callable[[], Opened]],
        name: str | None = None,
        autosaves: bool = True,
        keeps_cache: bool = True,
    ) -> None:
        self.session = opened.session
        self.memory = opened.memory
        self.model = opened.model
        self._asked, self._opens = opened.asked, opens
        self.begun_with = self.session.settings
        """The settings that roles are added to."""
        self.is_over = False
        self.saving = Saving(self, folder, is_on=autosaves, keeps_cache=keeps_cache)
        self.attached: list[str] = []
        """Files as text, sent with the next message."""
        self.edited = 0
        """The turns that the next message takes the place of."""
        self.prompt: Terminal | None = None
        self._display = display
        self._console = display.console
        self._interrupts = Interrupts()
        if name is not None:
            self._open(name)

    def run(self, prompt: Terminal, first: str | None = None) -> None:
        """Read and handle lines until the user leaves; `first` is handled before any is read."""
        self.prompt = prompt
        if first is not None:
            self.handle(first)
        while not self.is_over:
            self._interrupts.check()
            try:
                self.handle(prompt.read())
            except EOFError:
                self.is_over = True
            except KeyboardInterrupt:
                self.edited = 0
                self._interrupts.press()

    def close(self) -> None:
        """Save what is saved at the end."""
        if self.has_model:
            self.saving.leave()

    @property
    def has_model(self) -> bool:
        """False where one was let go for another, and neither could be loaded."""
        return "session" in self.__dict__

    def handle(self, line: str) -> None:
        """Run a command or send a message; an error of either is shown, and the chat goes on."""
        unsent = self.session.unsent
        line = slash_commands.MEANT.get(line, line)
        try:
            if is_command(line):
                self.edited = 0
                command, argument = slash_commands.find(readable(line).strip())
                command.run(self, argument)
            elif (message := readable(message_of(line))).strip():
                message = self._with_files(message, is_typed=not isinstance(line, Pasted))
                if self.edited:
                    self.session.undo(self.edited)
                    self.edited = 0
                self.answer(self.session.ask(message))
        except Interrupted:
            raise
        except Terminated:
            self.session.keep_what_was_said()
            self.saving.save()
            raise
        except KvliteError as error:
            if not self.has_model:
                raise
            self._console.error(error)
        if self.session.unsent not in (None, unsent):
            self._console.note("your message got no answer and is no part of the chat; /retry asks it again")

    def answer(self, events: Generator[Piece | Answer]) -> None:
        """Show an answer as it comes, then its counts; save the conversation."""
        answer = self._display.show(events, self._interrupts, self.session.cancel)
        self._console.note(answer_line(answer))
        self._display.tell(answer)
        if self.session.has_looped:
            other = "/set temperature=0.7" if self.session.settings.sampling.is_greedy else "/retry"
            self._console.warn(f"the answer went round in circles and was stopped; rephrase, or {other}")
        self.saving.save()

    def show(self, text: str) -> None:
        """Show the output of a command."""
        self._console.tell(text)

    def switch(self, name: str) -> None:
        """Go on with another model, which reads the conversation with the next message.

        The one there is makes room for it first, and comes back where the other cannot be loaded. Raises the error of
        a name that is none, and changes nothing.
        """
        opening, back = self._opens(name), self._opens(self._asked)
        messages, pinned = self.session.messages, self.session.conversation.pinned
        settings, thinking = self.session.settings, self.session.thinking
        del self.session, self.memory  # the weights go with the last who holds them
        self._display.recorder.released()
        try:
            opened = opening()
        except (KvliteError, KeyboardInterrupt) as error:
            if isinstance(error, KvliteError):
                self._console.error(error)
            self.is_over = True  # unless that loads
            opened = back()
            self.is_over = False
        self.session, self.memory, self.model, self._asked = opened.session, opened.memory, opened.model, opened.asked
        self.session.load(messages, pinned)
        before, self.begun_with = self.begun_with, self.session.settings
        self.session.settings = self.begun_with.changed_as(settings, before)
        self.session.think(thinking)

    def cache_changed(self, how: str) -> None:
        """Note that the cache is another one from now on."""
        self._display.recorder.changed(how, self.memory.predicted())

    def note(self, text: str) -> None:
        """Say something useful."""
        self._console.note(text)

    def warn(self, text: str) -> None:
        """Say that something is not as it should be."""
        self._console.warn(text)

    def draw(self, text: str) -> None:
        """Hand an escape sequence to the terminal, where there is one."""
        if self._console.is_terminal:
            self._console.draw(text)

    def start_over(self, system: str | None) -> None:
        """Forget the conversation, which stays in its file, and go on under this system prompt in a new one.

        Raises BudgetTooSmall, and changes nothing, where the cache cannot hold that.
        """
        self.session.check_system(system)
        self.saving.leave()
        self.session.set_system(system)

    def load(self, name: str) -> None:
        """Continue a saved session and show its last turn. Raises UsageError where there is none of this name."""
        self.show(self.saving.load(name))
        self._show_last()

    def _open(self, name: str) -> None:
        system = self.session.system
        told = self.saving.open(name)
        if told is None:
            return
        self.show(told)
        self._show_last()
        if system not in (None, self.session.system):
            self.show("the saved session keeps its own system prompt; /system TEXT starts over under another")

    def _show_last(self) -> None:
        """Show the last question and the beginning of its answer: where the conversation stands."""
        for message in self.session.messages[-2:]:
            lines = message["content"].strip().split("\n")
            first, more = lines[:SHOWN_LINES], len(lines) - SHOWN_LINES
            mark = ">>> " if message["role"] == "user" else ""
            self.show(
                "\n".join([mark + first[0], *first[1:], *([f"… {counted(more, 'more line')}"] if more > 0 else [])])
            )

    def _with_files(self, message: str, *, is_typed: bool) -> str:
        """The message with the files that were read for it, and those that it names."""
        text, names = with_files(message) if is_typed else (message, [])
        text = "\n\n".join([text, *self.attached])
        self.attached = []
        for name in missing_files(message) if is_typed else []:
            self.warn(f"there is no file {name}, so @{name} is sent as it is")
        if names:
            self.note(f"with {', '.join(names)}: {self.memory.tokens_of(text):,} tokens")
        return text
