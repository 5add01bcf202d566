"""The slash commands about what was said: asked again, edited, gone on with, copied, exported, saved and found."""

from __future__ import annotations

import base64
import shlex
from typing import TYPE_CHECKING

from kvlite.chat.attachments import fenced, file_text
from kvlite.chat.command import Command, first_words, show_pairs
from kvlite.chat.export import FORMATS, exported, write
from kvlite.errors import UsageError
from kvlite.memory.format import counted, human_bytes

if TYPE_CHECKING:
    from kvlite.chat.loop import Chat

_MOST_COPIED = 74_994  # bytes: what terminals take in one OSC 52


def _retry(chat: Chat, _: str) -> None:
    if chat.session.settings.sampling.is_greedy and chat.session.retries_alike:
        chat.show("greedy decoding gives the same answer again; /set temperature=0.7 lets it vary")
    chat.answer(chat.session.retry())


def _undo(chat: Chat, argument: str) -> None:
    if argument and not argument.isdecimal():
        raise UsageError(f"/undo takes a number of turns, not {argument!r}")
    question = chat.session.undo(int(argument or 1))
    chat.saving.save()
    chat.show(f"back to before: {first_words(question, 16)}")


def _edit(chat: Chat, argument: str) -> None:
    if argument and not argument.isdecimal():
        raise UsageError(f"/edit takes the number of a turn, not {argument!r}; /forgotten lists them")
    turns = chat.session.num_turns
    number = int(argument or turns)
    if not turns:
        raise UsageError("there is no question to edit yet; ask something first")
    if not 1 <= number <= turns:
        raise UsageError(f"there is no turn {number}; the conversation has {turns}")
    asked = [message["content"] for message in chat.session.messages if message["role"] == "user"]
    chat.edited = turns - number + 1
    follows = f" and {counted(turns - number, 'turn')} after it" if number < turns else ""
    chat.show(f"when you send it, this takes the place of turn {number}{follows}; Ctrl-C leaves all as it is")
    if chat.prompt is not None:
        chat.prompt.begin_with(asked[number - 1])


def _continue(chat: Chat, _: str) -> None:
    chat.answer(chat.session.go_on())


def _branch(chat: Chat, argument: str) -> None:
    left, name = chat.saving.branch(argument)
    chat.show(f"the conversation so far stays as {left}; this one goes on as {name}")


def _copy(chat: Chat, _: str) -> None:
    answers = [message["content"] for message in chat.session.messages if message["role"] == "assistant"]
    if not answers:
        raise UsageError("there is no answer to copy yet")
    data = answers[-1].encode()
    if len(data) > _MOST_COPIED:
        raise UsageError(f"the answer has {len(data):,} bytes, more than terminals copy; /export md writes a file")
    chat.draw(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
    chat.show(f"copied {len(answers[-1]):,} characters, where the terminal allows it (OSC 52)")


def _export(chat: Chat, argument: str) -> None:
    if not argument:
        raise UsageError(f"/export takes {', '.join(FORMATS)}, or a file that ends in one of them")
    if not chat.session.num_turns:
        raise UsageError("nothing to export yet; ask something first")
    name = chat.saving.file.name if chat.saving.file is not None else "chat"
    text, path = exported(chat.session.messages, argument, name)
    write(text, path)
    chat.show(f"wrote {path}")


def _read(chat: Chat, argument: str) -> None:
    try:
        names = shlex.split(argument)
    except ValueError as error:
        raise UsageError(f"/read {argument}: {error}") from None
    if not names:
        raise UsageError("/read takes the name of a file, whose text goes with your next message")
    texts = [fenced(name, file_text(name)) for name in names]
    chat.attached += texts
    tokens = sum(map(chat.memory.tokens_of, texts))
    chat.show(f"{', '.join(names)}: {tokens:,} tokens, sent with your next message")


def _tokens(chat: Chat, argument: str) -> None:
    if argument:
        chat.show(f"{chat.memory.tokens_of(argument):,} tokens")
        return
    kv = chat.session.counts()
    turns = [(f"turn {turn.number}", f"{turn.tokens:,}") for turn in chat.memory.turns()]
    show_pairs(chat, [*turns, ("seen", f"{kv.tokens_seen:,}"), ("kept", f"{kv.tokens_kept:,}")])


def _save(chat: Chat, argument: str) -> None:
    chat.show(f"saved as {chat.saving.save_as(argument)}")


def _load(chat: Chat, argument: str) -> None:
    if not argument:
        raise UsageError("/load takes the name of a session; /sessions lists them")
    chat.load(argument)


def _sessions(chat: Chat, argument: str) -> None:
    folder = chat.saving.folder
    found = folder.found(argument.split())
    if not found:
        chat.show(f"no session {f'with {argument}' if argument else ''} in {folder.folder}".replace("  ", " "))
    width = max((len(session.name) for session in found), default=0)
    for session in found:
        size = human_bytes(session.num_bytes + session.cache_bytes)
        turns = counted(session.turns, "turn")
        line = f"  {session.name.ljust(width)}  {session.saved:%Y-%m-%d %H:%M}  {turns:>9} {size:>8}  "
        chat.show(line + first_words(session.problem or session.first, len(line)))


CONVERSATION_COMMANDS = (
    Command(("retry", "regen"), "", "ask the last question again with the next seed", _retry),
    Command(("undo",), "[N]", "take back the last turn, or the last N", _undo),
    Command(("edit",), "[N]", "edit the last question, or that of turn N, and ask it instead", _edit),
    Command(("continue",), "", "go on with an answer that was cut short", _continue),
    Command(("branch",), "[NAME]", "leave the conversation as it is and go on in a copy", _branch),
    Command(("copy",), "", "copy the last answer", _copy),
    Command(("export",), "FILE", "write the conversation: md, json, jsonl, html or a file that ends in one", _export),
    Command(("read",), "FILE", "send the text of a file with the next message; @FILE in a message does too", _read),
    Command(("tokens",), "[TEXT]", "count the tokens of the conversation, or of a text", _tokens),
    Command(("save",), "[NAME]", "save the conversation, from now on under NAME", _save),
    Command(("load",), "NAME", "continue a saved conversation", _load),
    Command(("sessions",), "[WORDS]", "list the saved conversations, or those that hold all of WORDS", _sessions),
)
