"""Completion at the prompt: commands, then what they take; files behind an @. Loads prompt_toolkit."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter, WordCompleter
from prompt_toolkit.document import Document

from kvlite.cache.policy import policy_names
from kvlite.catalog.completion import complete_model
from kvlite.chat.roles import role_names
from kvlite.chat.session_files import SessionFolder
from kvlite.chat.slash_commands import BY_NAME


def known_words() -> dict[str, Callable[[], list[str]]]:
    """The words that commands take, by command, found when they are asked for."""
    return {
        "load": lambda: [file.name for file in SessionFolder().saved()],
        "model": lambda: complete_model(""),
        "policy": policy_names,
        "role": role_names,
        "think": lambda: ["auto", "on", "off"],
    }


class ChatCompleter(Completer):
    """Completes a command at the start of the text, its argument as `words` lists it by command, and @FILE."""

    def __init__(self, words: dict[str, Callable[[], list[str]]]) -> None:
        summaries = {f"/{name}": command.summary for name, command in BY_NAME.items()}
        self._commands = WordCompleter(list(summaries), meta_dict=summaries, sentence=True)
        self._files = PathCompleter(expanduser=True)
        self._words = words

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """Complete what stands before the cursor."""
        text = document.text_before_cursor
        last = text.rpartition(" ")[2].rpartition("\n")[2]
        command, space, argument = text.partition(" ")
        name = command.removeprefix("/") if command.startswith("/") and command.removeprefix("/") in BY_NAME else ""
        if last.startswith("@"):
            yield from self._files.get_completions(Document(last[1:]), event)
        elif name and space and BY_NAME[name].argument == "FILE":
            yield from self._files.get_completions(Document(argument), event)
        elif name and space and name in self._words:
            yield from WordCompleter(self._words[name](), sentence=True).get_completions(Document(argument), event)
        elif not space:
            yield from self._commands.get_completions(document, event)
