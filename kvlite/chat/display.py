"""An answer on the screen as it comes, and the lines about it and the cache."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import TYPE_CHECKING

from kvlite.chat.interrupt import Interrupts
from kvlite.llm.answer import CHAT_MAX_TOKENS, Answer
from kvlite.memory.counts import KVCounts
from kvlite.memory.format import human_bytes

if TYPE_CHECKING:
    from kvlite.console import Console
    from kvlite.engine.request import Completion, Sampling
    from kvlite.record.recorder import Recorder
    from kvlite.text.stream import Piece

BAR_CELLS = 8


class Display:
    """An answer on the screen, text on stdout and thinking on stderr; `end` closes the line that it leaves open."""

    def __init__(self, console: Console, *, shows_thinking: bool, shows_text: bool = True) -> None:
        self._console = console
        self._shows_thinking = shows_thinking
        self._shows_text = shows_text
        self._thinking_open = False
        self._line_open = False

    def show(self, piece: Piece) -> None:
        """Write a piece at once."""
        if not piece.thinking:
            if self._shows_text:
                self._end_thinking()
                self._console.answer(piece.text)
                self._line_open = not piece.text.endswith("\n") if piece.text else self._line_open
        elif self._shows_thinking:
            self._console.aside(piece.text)
            self._thinking_open = not piece.text.endswith("\n")
        elif self._console.has_live_stderr and not self._console.quiet:
            self._console.show_status("thinking …")

    def end(self) -> None:
        """End the last line of the answer."""
        self._end_thinking()
        if self._line_open:
            self._console.answer("\n")
            self._line_open = False

    def _end_thinking(self) -> None:
        if self._thinking_open:
            self._console.aside("\n")
            self._thinking_open = False


def show_answer(
    events: Generator[Piece | Answer],
    display: Display,
    interrupts: Interrupts,
    cancel: Callable[[], None],
    recorder: Recorder,
) -> Answer:
    """Show an answer as it comes, and return it; Ctrl-C calls `cancel`, which ends it early."""
    with interrupts.calling(cancel), closing(events):
        try:
            for event in events:
                if interrupts.pressed:  # perhaps before there was anything to cancel
                    cancel()
                if isinstance(event, Answer):
                    return event
                display.show(event)
                recorder.sample()
        finally:
            display.end()
    raise AssertionError("an answer ends with an Answer")


def bar(share: float) -> str:
    """Draw `share`, from 0 to 1, as a bar; any share above 0 fills a cell."""
    filled = min(BAR_CELLS, max(round(share * BAR_CELLS), int(share > 0)))
    return "█" * filled + "░" * (BAR_CELLS - filled)


def status_line(kv: KVCounts, last: Answer | None, sampling: Sampling) -> str:
    """Write the line under the prompt: bytes and tokens kept, speed, seed."""
    share = kv.live_bytes / kv.reserved_bytes if kv.reserved_bytes else 0.0
    parts = [
        f"KV {human_bytes(kv.live_bytes)}/{human_bytes(kv.reserved_bytes)} {bar(share)} {share:.0%}",
        f"kept {kv.tokens_kept:,} / seen {kv.tokens_seen:,} tok",
        *([] if last is None else [f"{last.completion.timing.tok_s:.0f} tok/s"]),
        "greedy" if sampling.is_greedy else f"seed {sampling.seed}",
    ]
    return " │ ".join(parts)


def answer_line(answer: Answer) -> str:
    """Write the line after an answer: its length, its speed, bytes in the cache, tokens evicted."""
    timing, kv, evicted = answer.completion.timing, answer.kv, answer.completion.evicted
    parts = [
        f"{answer.completion_tokens:,} tok",
        f"{timing.tok_s:.1f} tok/s",
        f"TTFT {timing.ttft_s:.1f} s",
        f"KV {human_bytes(kv.live_bytes)}",
        *([f"evicted {evicted:,} tok"] if evicted else []),
        *([] if answer.finish_reason == "stop" else [str(answer.finish_reason)]),
    ]
    return " · ".join(parts)


def cut_notice(completion: Completion) -> str | None:
    """Write the warning for an answer cut short by lack of room or by the default limit; None for any other."""
    why = completion.cut_short
    if why is None and completion.finish_reason == "length" and len(completion.ids) == CHAT_MAX_TOKENS:
        why = f"it has {CHAT_MAX_TOKENS:,} tokens; --max-tokens, in a chat /set max_tokens=N, sets another limit"
    return None if why is None else f"the answer was cut short: {why}"


def eviction_notice(kv: KVCounts) -> str:
    """Write the notice for the first eviction."""
    return (
        f"the KV cache of {human_bytes(kv.reserved_bytes)} is full: {kv.tokens_kept:,} of {kv.tokens_seen:,} tokens "
        f"kept by policy {kv.policy}; the model no longer sees the other {kv.tokens_evicted:,}"
    )


def counts_table(kv: KVCounts) -> list[tuple[str, str]]:
    """List every count of the cache with its name, as `/mem` shows them."""
    return [
        ("budget", human_bytes(kv.budget_bytes)),
        ("reserved", human_bytes(kv.reserved_bytes)),
        ("live", f"{human_bytes(kv.live_bytes)} (peak {human_bytes(kv.peak_bytes)})"),
        ("tokens seen", f"{kv.tokens_seen:,}"),
        ("tokens kept", f"{kv.tokens_kept:,}"),
        ("tokens evicted", f"{kv.tokens_evicted:,}"),
        ("policy", kv.policy),
        ("dtype", kv.dtype),
    ]
