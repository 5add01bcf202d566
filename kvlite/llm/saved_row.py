"""A conversation's row of the cache in a file, so that it goes on without being read again. Loads no torch by itself.

One safetensors file: the live slots of each KV head as they are stored, the constant state of hybrids, the ids, and in
its header all that must be the same for the row to be of use. It is never more than the budget and a few bytes a token.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvlite.catalog.adapter import CONFIG, WEIGHTS, adapter_folder
from kvlite.catalog.fingerprint import fingerprint
from kvlite.engine.request import Completion, FinishReason, Timing
from kvlite.errors import KvliteError, OutputError
from kvlite.llm.answer import Answer
from kvlite.llm.conversation import ROW, Conversation

if TYPE_CHECKING:
    from torch import Tensor

    from kvlite.cache.cache import CacheSnapshot, SlotCache
    from kvlite.engine.rows import RowSnapshot
    from kvlite.llm import LLM
    from kvlite.memory.plan import CachePlan

FORMAT = "kvlite.row/1"
_SAID = "said"


class Unusable(KvliteError):
    """A saved row that does not fit what would go on from it; the text says why."""


@dataclass(frozen=True, slots=True)
class RowFacts:
    """All that must be equal for a row to go on."""

    format: str
    model: str
    weights: str
    adapter: str
    template: str
    policy: str
    slots: str
    messages: str
    positions: str

    @classmethod
    def of(cls, llm: LLM, messages: Sequence[Mapping[str, str]]) -> RowFacts:
        """The facts of what is loaded, for a conversation of `messages`."""
        loaded, text, cache = llm.model.loaded, llm.model.text, llm.engine.cache
        name = llm.model.spec.options.adapter
        adapter = None if name is None else adapter_folder(name, offline=True)
        said = json.dumps([(message["role"], message["content"]) for message in messages])
        return cls(
            format=FORMAT,
            model=llm.model.files.identity(),
            weights=f"{loaded.shape.dtype} {loaded.quant}",
            adapter="" if adapter is None else fingerprint(adapter / part for part in (CONFIG, WEIGHTS)),
            template=hashlib.sha256(text.template.encode()).hexdigest(),
            policy=str(cache.policy),
            slots=cache.stored.name,
            messages=hashlib.sha256(said.encode()).hexdigest(),
            positions="" if loaded.shape.short_positions is None else f"{loaded.shape.max_positions:,}",
        )

    def differing(self, other: Mapping[str, Any]) -> str | None:
        """The reason why a row with the `other` facts is of no use; None where it is."""
        reasons = {
            "format": "another kvlite wrote it",
            "model": f"it is of {other.get('model', 'another model')}",
            "weights": f"its weights were {other.get('weights')}",
            "adapter": "its adapter was another, or none",
            "template": "the chat template was another",
            "policy": f"its policy was {other.get('policy')}",
            "slots": f"its slots hold {other.get('slots')}",
            "messages": "the conversation is another by now",
            "positions": f"its rotary factors were those for {other.get('positions')} positions",
        }
        return next((why for name, why in reasons.items() if other.get(name, "") != getattr(self, name)), None)


def save_row(path: Path, llm: LLM, conversation: Conversation, messages: Sequence[Mapping[str, str]]) -> int | None:
    """Write the row to `path`, whole or not at all, readable by the user alone, and give its bytes.

    None, without a file, where the row does not hold just `messages`. Raises OutputError when the disk refuses.
    """
    import torch
    from safetensors.torch import save_file

    last = conversation.last
    if last is None or not conversation.holds(messages):
        path.unlink(missing_ok=True)
        return None
    snapshot = llm.engine.rows.snapshot(ROW)
    row = snapshot.row
    tensors = {
        f"{number}.{name}": held for number, part in enumerate(snapshot.cache.parts) for name, held in part.items()
    }
    states = snapshot.state.tensors if snapshot.state is not None else []
    tensors |= {f"state.{number}": held for number, held in enumerate(states)}
    tensors[_SAID] = torch.tensor(row.said, dtype=torch.int32)
    tensors = {name: held.contiguous() for name, held in tensors.items()}
    facts = asdict(RowFacts.of(llm, messages)) | {
        "heads": [[part.heads.layer, *part.heads.numbers] for part in llm.engine.cache.parts],
        "row": {"seen": row.seen, "rot": row.rot, "unfed": row.unfed, "pins": row.pins, "echoed": row.echoed},
        "has_past": [[*past.items()] for past in snapshot.state.has_past] if snapshot.state is not None else [],
        "starts": conversation.starts,
        "pinned": sorted(conversation.pinned),
        "last": _of_answer(last),
    }
    facts["digest"] = _digest(tensors, facts)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        os.close(handle)
        try:
            save_file(tensors, name, {"kvlite": json.dumps(facts)})
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"the cache cannot be saved: {error.strerror or error}; the chat itself is") from None
    return path.stat().st_size


def load_row(path: Path, llm: LLM, conversation: Conversation, messages: Sequence[Mapping[str, str]]) -> int:
    """Put the row of `path` into the cache, to go on after `messages`, and give its tokens.

    Raises Unusable, and changes nothing, where it does not fit or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("kvlite", "{}"))
            if why := RowFacts.of(llm, messages).differing(facts):
                raise Unusable(why)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except FileNotFoundError:
        raise Unusable("its cache was not saved") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise Unusable(f"its file is damaged: {' '.join(str(error).split())}") from None
    if facts.pop("digest", None) != _digest(tensors, facts):
        raise Unusable("its file is damaged")
    snapshot = _snapshot(llm, facts, tensors)
    llm.engine.rows.restore(ROW, snapshot)
    answer = Answer(
        **facts["last"] | {"finish_reason": FinishReason(facts["last"]["finish_reason"])},
        completion=Completion("saved", (), FinishReason.STOP, 0, 0, llm.engine.rows.counts(ROW), Timing(0.0, 0.0, 0.0)),
    )
    conversation.resume(messages, answer, facts["starts"], set(facts["pinned"]))
    return len(snapshot.row.said)


def _snapshot(llm: LLM, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> RowSnapshot:
    """The row for the cache there is, which may have more slots than the one it was saved from."""
    from array import array

    from kvlite.engine.row import Row
    from kvlite.engine.rows import RowSnapshot
    from kvlite.models.hybrid import StateSnapshot

    state = llm.engine.loaded.state
    by_head: dict[tuple[int, int], dict[str, Tensor]] = {}
    for number, (layer, *heads) in enumerate(facts["heads"]):
        prefix = f"{number}."
        of_part = {name.removeprefix(prefix): held for name, held in tensors.items() if name.startswith(prefix)}
        for place, head in enumerate(heads):
            by_head[layer, head] = {name: held[place] for name, held in of_part.items()}
    plans = llm.engine.rows.plans
    copies = (_copy(llm.engine.cache, plan, by_head) for plan in plans)
    found = next(((copy, plan) for copy, plan in zip(copies, plans, strict=True) if copy is not None), None)
    if found is None:
        raise Unusable("it was another budget")
    states = [tensors[f"state.{number}"] for number in range(sum(name.startswith("state.") for name in tensors))]
    past = [{int(key): value for key, value in pairs} for pairs in facts["has_past"]]
    said = array("i", tensors[_SAID].tolist())
    row = Row(ROW, said=said, used=set(said), **facts["row"] | {"pins": tuple(map(tuple, facts["row"]["pins"]))})
    return RowSnapshot(found[0], None if state is None else StateSnapshot(states, past), row, found[1])


def _copy(
    cache: SlotCache, plan: CachePlan, by_head: Mapping[tuple[int, int], dict[str, Tensor]]
) -> CacheSnapshot | None:
    """The slots of each head for a cache like this one of `plan`; None where it has no room for them."""
    import torch

    from kvlite.cache.cache import CacheSnapshot
    from kvlite.cache.layer import heads_of

    live: dict[int, int] = {}
    parts = []
    for heads in heads_of(cache.layers, plan.head_slots, cache.policy.noise is not None):
        slots = plan.head_slots[heads.layer][heads.numbers[0]]
        held_by = [by_head.get((heads.layer, head), {}) for head in heads.numbers]
        sizes = {len(held["pos"]) if "pos" in held else -1 for held in held_by} | {live.get(slots, -2)} - {-2}
        if len(sizes) != 1 or (size := sizes.pop()) < 0 or size > slots:
            return None
        live[slots] = size
        parts.append({name: torch.stack([held[name] for held in held_by]) for name in cache.parts[0].tensors})
    return CacheSnapshot(live, parts)


def _of_answer(answer: Answer) -> dict[str, Any]:
    names = ("text", "thinking", "seed", "ended_itself", "is_thinking")
    return {name: getattr(answer, name) for name in names} | {"finish_reason": str(answer.finish_reason)}


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """A digest of the facts and of the bytes of all tensors."""
    import torch

    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {[*tensors[name].shape]}".encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
