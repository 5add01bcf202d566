"""The slash commands about what the model still remembers: told turn by turn, kept, made smaller or larger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvlite.cache.policy import policy_names
from kvlite.chat.command import Command, first_words, show_pairs
from kvlite.errors import UsageError
from kvlite.llm.banner import cache_size
from kvlite.record.table import kept_percent

if TYPE_CHECKING:
    from kvlite.chat.loop import Chat
    from kvlite.llm.chat_memory import Change, TurnKept

_SHADES = ((0.25, "░"), (0.6, "▒"), (1.0, "▓"))


def strip(cells: Sequence[float]) -> str:
    """Draw the shares of a turn's parts that are kept: · is nothing, a full block everything."""
    return "".join("·" if not cell else next((shade for most, shade in _SHADES if cell < most), "█") for cell in cells)


def numbers(turns: Sequence[int]) -> str:
    """Write the numbers of turns, neighbours together: `1-3, 5`."""
    spans: list[list[int]] = []
    for turn in turns:
        if spans and turn == spans[-1][-1] + 1:
            spans[-1][1:] = [turn]
        else:
            spans.append([turn])
    return ", ".join("-".join(map(str, span)) for span in spans)


def _forgotten(chat: Chat, _: str) -> None:
    turns = chat.memory.turns()
    if not turns:
        chat.show("the cache holds no turn yet")
        return
    _show_turns(chat, turns)
    kv, gone = chat.session.counts(), [turn.number for turn in turns if not turn.share]
    said = f"kept {kv.tokens_kept:,} of {kv.tokens_seen:,} tokens"
    if before := chat.memory.before_turns():
        said += f", {before:,} of them before turn 1"
    if gone:
        said += f"; of turn{'s'[: len(gone) > 1]} {numbers(gone)} nothing is left"
    chat.show(said if kv.tokens_evicted else f"{said}: nothing is forgotten")


def _show_turns(chat: Chat, turns: Sequence[TurnKept], after: Sequence[float] | None = None) -> None:
    questions = [message["content"] for message in chat.session.messages if message["role"] == "user"]
    for turn, question in zip(turns, questions, strict=False):
        shares = kept_percent(turn.share).rjust(6)
        if after is not None:
            shares += f" → {kept_percent(after[turn.number - 1]).rjust(6)}"
        line = f"{turn.number:>4}  {strip(turn.cells)} {shares} of {turn.tokens:>5,} tok{' pinned' * turn.is_pinned}  "
        chat.show(line + first_words(question, len(line)))


def _mem(chat: Chat, _: str) -> None:
    show_pairs(chat, chat.memory.panel())


def _number(command: str, argument: str) -> int:
    if not argument.isdecimal():
        raise UsageError(f"/{command} takes the number of a turn, not {argument!r}; /forgotten lists them")
    return int(argument)


def _pin(chat: Chat, argument: str) -> None:
    turn = chat.memory.pin(_number("pin", argument))
    chat.saving.save()
    kept = "all of it" if turn.share == 1 else f"what is left of it ({kept_percent(turn.share)})" if turn.share else ""
    heads, of = chat.memory.heads_with_room()
    where = f" in {heads:,} of {of:,} heads; the others keep the best of it that they have room for"
    stays = f"{kept} stays{where if heads < of else ''}"
    chat.show(f"turn {turn.number} is pinned: {stays}" if kept else f"turn {turn.number} is gone already")


def _unpin(chat: Chat, argument: str) -> None:
    number = _number("unpin", argument)
    chat.memory.unpin(number)
    chat.saving.save()
    chat.show(f"turn {number} is pinned no more")


def _budget(chat: Chat, argument: str) -> None:
    size, is_dry = _one_word(argument)
    if size is None:
        raise UsageError("/budget takes a size, as in /budget 1GB, and --dry to see first what that would keep")
    turns = chat.memory.turns()
    _tell(chat, chat.memory.change(budget=size, dry=is_dry), turns, is_dry)


def _policy(chat: Chat, argument: str) -> None:
    name, is_dry = _one_word(argument)
    if name is None:
        raise UsageError(
            f"/policy takes a policy, one of {', '.join(policy_names())}; now {chat.session.counts().policy}"
        )
    turns = chat.memory.turns()
    _tell(chat, chat.memory.change(policy=name, dry=is_dry), turns, is_dry)


def _one_word(argument: str) -> tuple[str | None, bool]:
    """The only word of an argument but for `--dry`, None where it is not one, and whether that is there."""
    words = argument.split()
    others = [word for word in words if word != "--dry"]
    return others[0] if len(others) == 1 else None, "--dry" in words


def _tell(chat: Chat, change: Change, turns: Sequence[TurnKept], is_dry: bool) -> None:
    """Show what a change of the cache keeps, and where it was made note it."""
    held = f"{cache_size(change.before)} → {cache_size(change.after)}, policy {change.policy}"
    chat.show(f"{held}{'; nothing is changed yet' if is_dry else ''}")
    if change.shares is None and turns:
        chat.show(f"the conversation {'would be' if is_dry else 'is'} read again with your next message")
    elif change.shares is not None and any(
        turn.share != share for turn, share in zip(turns, change.shares, strict=True)
    ):
        _show_turns(chat, turns, change.shares)
    if not is_dry:
        chat.cache_changed(held)


def _check(chat: Chat, _: str) -> None:
    answer = chat.session.last
    if answer is None:
        raise UsageError("there is no answer to check yet; ask something first")
    found = chat.memory.check(answer)
    said = f"{found.same:,} of {found.tokens:,} tokens of the last answer would be the same with a full cache"
    if found.first is not None:
        said += f"; token {found.first:,}, {found.said!r}, would be {found.instead!r}"
    chat.show(said)


MEMORY_COMMANDS = (
    Command(("mem", "kv"), "", "what the KV cache holds", _mem),
    Command(("forgotten",), "", "each turn, and how much of it the model still sees", _forgotten),
    Command(("pin",), "N", "never forget what is left of turn N", _pin),
    Command(("unpin",), "N", "let turn N be forgotten again", _unpin),
    Command(("budget",), "SIZE [--dry]", "give the cache another size now; --dry says what that would keep", _budget),
    Command(("policy",), "NAME [--dry]", "forget by another policy from now on", _policy),
    Command(("check",), "", "how much of the last answer a full cache would have said too", _check),
)
