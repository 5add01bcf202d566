"""Lines about the cache and the answers, as text. Writes nothing itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvlite.llm.answer import CHAT_MAX_TOKENS, Answer
from kvlite.memory.counts import KVCounts
from kvlite.memory.format import human_bytes

if TYPE_CHECKING:
    from kvlite.engine.request import Completion, Sampling

BAR_CELLS = 8


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
