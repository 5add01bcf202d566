"""The file a chat is saved to, and its row of the cache beside it, so that it goes on without being read again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kvlite.chat.session_files import KEPT_CACHES, ChatMessage, SessionFile, SessionFolder
from kvlite.errors import OutputError, UsageError
from kvlite.llm.saved_row import Unusable
from kvlite.memory.format import counted, human_bytes

if TYPE_CHECKING:
    from kvlite.chat.loop import Chat

SAVED_EACH_TURN = 32 * 10**6
"""Bytes of a row that is saved after each turn; a larger one is when the conversation is left."""


class Saving:
    """Saves the conversation of `chat` in `folder`: its messages after each turn, its row at the latest at the end."""

    def __init__(self, chat: Chat, folder: SessionFolder, *, is_on: bool = True, keeps_cache: bool = True) -> None:
        self.folder = folder
        self.file: SessionFile | None = None
        self._chat = chat
        self._is_on, self._keeps_cache = is_on, keeps_cache
        self._loaded: list[ChatMessage] = []  # the messages of the session that goes on, as its file has them
        self._is_refused = False  # the text could not be saved, so the row may not be: the file may be another's by now

    def save(self) -> None:
        """Save the conversation where saving is on; an error of the disk is a warning."""
        is_saved = self.file is not None and self.file.exists()  # then /undo of all turns is saved, too
        if self._is_on and (self._chat.session.num_turns or is_saved):
            try:
                file = self._write()
                if self._chat.session.counts().live_bytes <= SAVED_EACH_TURN:
                    self._write_cache(file)
            except OutputError as error:
                self._chat.warn(str(error))

    def save_as(self, name: str) -> str:
        """Save, under `name` from now on if one is given, and give the name.

        Raises UsageError where another session has it, or there is nothing to save.
        """
        if not self._chat.session.num_turns:
            raise UsageError("nothing to save yet; ask something first")
        before = self.file
        if name and (before is None or name != before.name):
            self.file = self._unused(name)
        file = self._write()
        if before is not None and before.is_new and before != file:  # named by the clock, and now by the user
            before.remove()
        self._write_cache(file)
        return file.name

    def branch(self, name: str) -> tuple[str, str]:
        """Leave the conversation so far under its name and go on in a copy, and give both names."""
        left = self.save_as("")
        assert self.file is not None
        self.file.is_new = False
        self.file = self._unused(name) if name else self.folder.new_file()
        return left, self.save_as("")

    def load(self, name: str) -> str:
        """Continue a saved session, and say how. Raises UsageError where there is none of this name."""
        file = self.folder.file(name)
        messages = file.load()
        self.leave()
        session = self._chat.session
        session.load(messages, file.pinned)
        self.file, self._loaded = file, [*session.messages]
        told = f"loaded {name}: {counted(session.num_turns, 'turn')}"
        start = time.monotonic()
        try:
            tokens = self._chat.memory.load(file.cache_path, session.messages)
        except Unusable as why:
            if not session.num_turns:
                return told
            return f"{told}, read by the model with your next message: {why}"
        taken = time.monotonic() - start
        return f"{told}, {tokens:,} tokens as they were in the cache ({human_bytes(file.cache_bytes)} in {taken:.1f} s)"

    def open(self, name: str) -> str | None:
        """Continue the session of this name and say how, or begin it."""
        file = self.folder.file(name)
        if file.exists():
            return self.load(name)
        self.file = file
        return None

    def leave(self) -> None:
        """Save the row of the conversation that is left: nothing more of it is said."""
        file, self.file = self.file, None
        is_refused, self._is_refused = self._is_refused, False
        if file is None or not self._is_on or not file.exists() or is_refused:
            return
        try:
            size = self._write_cache(file)
        except OutputError as error:
            self._chat.warn(str(error))
            return
        if size is not None and size > SAVED_EACH_TURN:
            self._chat.note(f"saved {file.name} with {human_bytes(size)} of its cache; --no-save-kv does without")
        self.folder.drop_old_caches(KEPT_CACHES)

    def _unused(self, name: str) -> SessionFile:
        file = self.folder.file(name)
        if file.exists():
            raise UsageError(f"a session named {name} exists; choose another name")
        return file

    def _write(self) -> SessionFile:
        if self.file is None:
            self.file = self.folder.new_file()
        session = self._chat.session
        self._is_refused = True
        self.file.save(session.messages, self._chat.model, session.conversation.pinned)
        self._is_refused = False
        return self.file

    def _write_cache(self, file: SessionFile) -> int | None:
        session = self._chat.session
        if session.messages == self._loaded and not session.conversation.holds(session.messages):
            return None  # nothing was asked, so what was saved with this text stays
        if not self._keeps_cache:
            file.cache_path.unlink(missing_ok=True)
            return None
        return self._chat.memory.save(file.cache_path, session.messages)
