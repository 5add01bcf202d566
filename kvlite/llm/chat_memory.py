"""The memory of one conversation, told and changed while it goes on: what of it is kept, its pins, its budget.

Loads no torch before a conversation has tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from kvlite.cache.policy import load_policy
from kvlite.errors import DoesNotFit, UsageError
from kvlite.llm.conversation import ROW
from kvlite.llm.saved_row import load_row, save_row
from kvlite.llm.spec import PlanDevice
from kvlite.memory.budget import Budget
from kvlite.memory.format import human_bytes

if TYPE_CHECKING:
    from kvlite.llm import LLM
    from kvlite.llm.answer import Answer
    from kvlite.llm.conversation import Conversation
    from kvlite.memory.plan import CachePlan

CELLS = 12  # of a turn's heat strip


@dataclass(frozen=True, slots=True)
class TurnKept:
    """The tokens of turn `number`, from 1, and the share of them that is kept: the mean over the heads of full layers.

    `cells` are the shares of its parts, in order.
    """

    number: int
    tokens: int
    share: float
    cells: tuple[float, ...]
    is_pinned: bool


@dataclass(frozen=True, slots=True)
class Change:
    """A cache before and after; `shares` of each turn that are kept then, None where all is fed again."""

    before: CachePlan
    after: CachePlan
    policy: str
    shares: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Checked:
    """An answer against the full cache: tokens that would be the same, of how many, and the first that would not.

    `said` and `instead` are that token and the full cache's, None where all are the same.
    """

    same: int
    tokens: int
    first: int | None = None
    said: str | None = None
    instead: str | None = None


class ChatMemory:
    """The memory of the `conversation` that `llm` holds in its only row."""

    def __init__(self, llm: LLM, conversation: Conversation) -> None:
        self._llm, self._conversation = llm, conversation
        self._peak_before_bytes = 0  # of the caches before the one there is

    def turns(self) -> list[TurnKept]:
        """Every turn in the row, the oldest first; none where it holds nothing yet."""
        spans = self._conversation.turn_spans()
        return [] if not spans else self._told(spans, self._kept())

    def before_turns(self) -> int:
        """Count the tokens before the first turn: the system prompt, and what the template begins with."""
        spans = self._conversation.turn_spans()
        return spans[0][0] if spans else 0

    def pin(self, number: int) -> TurnKept:
        """Evict nothing more of a turn. Raises UsageError where there is none, BudgetTooSmall where it has no room."""
        self._conversation.pin(number)
        return self.turns()[number - 1]

    def heads_with_room(self) -> tuple[int, int]:
        """Count the KV heads that keep all that is left of what is pinned, and all of them; some have few slots."""
        return self._llm.engine.cache.heads_with_room(ROW, self._llm.engine.rows.pins(ROW))

    def unpin(self, number: int) -> None:
        """Let a turn be evicted again. Raises UsageError where it is not pinned."""
        self._conversation.unpin(number)

    def change(self, budget: str | None = None, policy: str | None = None, *, dry: bool = False) -> Change:
        """Give the conversation another budget or policy; with `dry` only say what would be kept.

        Raises UsageError or CapacityError, and changes nothing, where there is no such cache.
        """
        from kvlite.cache.retention import kept_in
        from kvlite.models.device import free_bytes

        llm, engine = self._llm, self._llm.engine
        spec = llm.model.spec
        if budget is not None:
            spec = replace(spec, budget=Budget.parse(budget), options=replace(spec.options, kv_budget=budget))
        if policy is not None:
            spec = replace(spec, policy=load_policy(policy), options=replace(spec.options, kv_policy=policy))
        spec = replace(spec, on_full=spec.policy.when_full(spec.options.on_full), stored=engine.cache.stored)
        device = engine.loaded.device
        own = engine.plan.reserved_bytes if device.type == "cuda" else engine.rows.counts(ROW).live_bytes  # else pages
        free = free_bytes(device) + own
        place = PlanDevice("cuda" if device.type == "cuda" else "cpu", str(device), free)
        fit = spec.fit(llm.model.files, place, None, loaded=engine.loaded.shape)
        if (profile := replace(llm.model, spec=spec).profile(fit)) is not None:
            fit = spec.fit(llm.model.files, place, None, loaded=engine.loaded.shape, profile=profile)
        after, before = fit.cache(spec.budget), engine.plan
        if spec.on_full != "evict" and (held := engine.rows.counts(ROW).tokens_kept) > after.fewest:
            raise DoesNotFit(
                f"{held:,} tokens are held and nothing may be evicted; the cache would hold {after.fewest:,}"
            )
        moved, spans = engine.rows.moved(after, spec.policy), self._conversation.turn_spans()
        pinned = [span for number, span in enumerate(spans, 1) if number in self._conversation.pinned]
        engine.rows.check_change(after, spec.policy, None if moved is not None else tuple(pinned))
        shares = None
        if moved is not None:
            kept = kept_in(engine.cache, moved, self._seen).tolist()
            shares = tuple(_mean(kept[start:end]) for start, end in spans)
        if not dry:
            self._peak_before_bytes = max(self._peak_before_bytes, engine.rows.counts(ROW).peak_bytes)
            is_moved = engine.rows.change_cache(after, spec.policy, spec.options.on_full)
            assert is_moved == (moved is not None)
            llm.adopt(spec, fit)
            self._conversation.drop_checkpoints()
            if not is_moved:
                self._conversation.forget()
        return Change(before, after, str(spec.policy), shares)

    def check(self, answer: Answer) -> Checked:
        """Read the conversation into a full cache and draw the last answer's tokens again, each after what was said.

        Raises UsageError where the window is too short for that, DoesNotFit where memory is.
        """
        from kvlite.engine.recheck import full_engine, redrawn

        engine, text = self._llm.engine, self._llm.model.text
        said = list(engine.rows.said(ROW))
        ids = list(answer.completion.ids)
        if not ids or said[-len(ids) :] != ids:
            raise UsageError("the last answer is not in the cache any more; ask something first")
        window = engine.loaded.window
        if window is not None and len(said) > window:
            raise UsageError(
                f"the conversation has {len(said):,} tokens and the model's window {window:,}; no full cache holds it"
            )
        full = full_engine(engine, len(said))
        request = self._conversation.request
        assert request is not None, "the answer in the row had one"
        found = redrawn(engine, full, said, len(ids), request)
        differing = [at for at, (one, other) in enumerate(zip(found, ids, strict=True)) if one != other]
        if not differing:
            return Checked(len(ids), len(ids))
        first = differing[0]
        word, instead = (str(text.tokenizer.decode([token])) for token in (ids[first], found[first]))
        return Checked(len(ids) - len(differing), len(ids), first + 1, word, instead)

    def predicted(self) -> dict[str, int]:
        """Bytes by term, as the cache that is there now was planned."""
        return self._llm.predicted()

    def save(self, path: Path, messages: Sequence[Mapping[str, str]]) -> int | None:
        """Save the row where it holds just `messages`, and give its bytes. Raises OutputError when the disk refuses."""
        return save_row(path, self._llm, self._conversation, messages)

    def load(self, path: Path, messages: Sequence[Mapping[str, str]]) -> int:
        """Put a saved row back, to go on after `messages`, and give its tokens; raises Unusable if it does not fit."""
        return load_row(path, self._llm, self._conversation, messages)

    def tokens_of(self, text: str) -> int:
        """Count the tokens of a text."""
        return len(self._llm.model.text.raw(text).ids)

    def panel(self) -> list[tuple[str, str]]:
        """The cache, line by line: names and values."""
        from kvlite.engine.memory_report import EngineMemory

        engine, kv = self._llm.engine, self._llm.engine.rows.counts(ROW)
        reading, plan = EngineMemory(engine).read(), engine.plan
        sinks = min(engine.rows.policy.sinks, kv.tokens_seen) if engine.rows.policy.evicts else 0
        pinned = sum(end - start for start, end in engine.rows.pins(ROW))
        kept = sorted(layer.kept for layer in reading.layers)
        slots = sorted(part.num_slots for part in engine.cache.parts if part.shape.window is None)
        by_head = f", {slots[0]:,} to {slots[-1]:,} by KV head" if slots and slots[0] != slots[-1] else ""
        before = self._peak_before_bytes
        earlier = f", {human_bytes(before)} before the last change" if before else ""
        rows = [
            ("budget", f"{human_bytes(kv.budget_bytes)}, of which the cache reserves {kv.reserved_bytes:,} bytes"),
            ("used", f"{human_bytes(kv.live_bytes)} now, {human_bytes(kv.peak_bytes)} at most{earlier}"),
            ("room for", f"{plan.slots:,} tokens of {human_bytes(reading.bytes_per_token)} in {kv.dtype}{by_head}"),
            ("full", f"{kv.full_heads:,} of {kv.heads:,} KV heads, which evict" if kv.full_heads else "no KV head"),
            ("tokens seen", f"{kv.tokens_seen:,}"),
            ("tokens kept", f"{kv.tokens_kept:,}, evicted {kv.tokens_evicted:,}"),
            ("protected", f"{sinks} sinks, {pinned:,} pinned, {engine.rows.policy.recent(plan.slots):,} newest"),
            ("policy", f"{kv.policy}, state {human_bytes(reading.terms.get('policy_state', 0))}"),
        ]
        if kept and kept[0] != kept[-1]:
            rows.append(("kept per layer", f"{kept[0]:,.0f} to {kept[-1]:,.0f} tokens"))
        if reading.full_cache_bytes:
            times = f", {reading.full_cache_bytes / kv.live_bytes:.1f} times as much" if kv.live_bytes else ""
            rows.append(("a full cache", f"{human_bytes(reading.full_cache_bytes)}{times}"))
        rows += [
            (name.replace("_", " "), human_bytes(size)) for name, size in reading.terms.items() if name == "weights"
        ]
        rows.append(("copies for /undo", human_bytes(self._conversation.checkpoint_bytes)))
        return rows

    @property
    def _seen(self) -> int:
        return self._llm.engine.rows.counts(ROW).tokens_seen

    def _kept(self) -> list[float]:
        from kvlite.cache.retention import kept_by_position

        kept: list[float] = kept_by_position(self._llm.engine.cache, ROW, self._seen).tolist()
        return kept

    def _told(self, spans: Sequence[tuple[int, int]], kept: Sequence[float]) -> list[TurnKept]:
        turns = []
        for number, (start, end) in enumerate(spans, 1):
            end = min(end, len(kept))  # the newest token may not be fed yet
            tokens = end - start
            edges = [start + tokens * cell // CELLS for cell in range(CELLS + 1)]
            cells = tuple(_mean(kept[a : max(b, a + 1)]) for a, b in pairwise(edges))
            turns.append(TurnKept(number, tokens, _mean(kept[start:end]), cells, number in self._conversation.pinned))
        return turns


def _mean(shares: Sequence[float]) -> float:
    return sum(shares) / len(shares) if shares else 0.0
