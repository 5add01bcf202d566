"""The cache in one line: bytes, a bar, tokens kept of those seen, and what else fits. No number rounds to a lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvlite.memory.format import human_bytes

if TYPE_CHECKING:
    from kvlite.engine.request import Sampling
    from kvlite.llm.answer import Answer
    from kvlite.memory.counts import KVCounts

BAR_CELLS = 6
_EIGHTHS = " ▏▎▍▌▋▊▉"


def bar(share: float, cells: int = BAR_CELLS) -> str:
    """Draw `share`, from 0 to 1, in eighths of a cell: any share above 0 shows, and only the whole fills it."""
    share = min(max(share, 0.0), 1.0)
    eighths = int(share * cells * 8) if share < 1 else cells * 8
    full, part = divmod(max(eighths, int(share > 0)), 8)
    drawn = "█" * full + (_EIGHTHS[part] if part else "")
    return drawn + "░" * (cells - len(drawn))


def of_bytes(part: int, whole: int) -> str:
    """Write bytes of bytes, the unit once where it is the same: `1.31/2.00 GB`."""
    first, last = human_bytes(part), human_bytes(whole)
    number, _, unit = first.partition(" ")
    return f"{number}/{last}" if last.endswith(f" {unit}") else f"{first}/{last}"


def gauge(kv: KVCounts, width: int, extras: tuple[str, ...] = ()) -> str:
    """Write the cache in at most `width` columns; the last of `extras` goes first, then the bar, then the tokens."""
    share = kv.live_bytes / kv.reserved_bytes if kv.reserved_bytes else 0.0
    held = f"KV {of_bytes(kv.live_bytes, kv.reserved_bytes)}"
    tokens = f"kept {kv.tokens_kept:,} of {kv.tokens_seen:,}"
    said = [*filter(None, (full_heads(kv), *extras))]
    forms = [" · ".join([f"{held} {bar(share)} {tokens}", *said[:count]]) for count in range(len(said), -1, -1)]
    forms += [f"{held} · {tokens}", held]
    return next((form for form in forms if len(form) <= width), held[: max(0, width)])


def full_heads(kv: KVCounts) -> str:
    """Write why tokens are evicted while bytes are left: some KV heads are full, others, with more slots, not yet."""
    is_so = kv.tokens_evicted and 0 < kv.full_heads < kv.heads
    return f"{kv.full_heads:,} of {kv.heads:,} heads full" if is_so else ""


def drawn_line(sampling: Sampling) -> str:
    """Write how tokens are drawn, in one line of a narrow terminal."""
    limits = (("top-p", sampling.top_p, 1.0), ("top-k", sampling.top_k, 0), ("min-p", sampling.min_p, 0.0))
    said = [f"{name} {value:g}" for name, value, off in limits if value != off]
    drawn = ", ".join([f"temperature {sampling.temperature:g}", *said, f"seed {sampling.seed}"])
    return f"{drawn} · --greedy draws nothing"


def status_line(kv: KVCounts, last: Answer | None, sampling: Sampling, width: int) -> str:
    """Write the line under the prompt: the cache, the speed of the last answer, and how the next one is drawn."""
    speed = "" if last is None else f"{last.completion.timing.tok_s:.0f} tok/s"
    return gauge(kv, width, (speed, "greedy" if sampling.is_greedy else f"seed {sampling.seed}"))
