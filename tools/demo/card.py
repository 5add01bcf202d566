"""The model card of the built-in model, with the numbers that were measured."""

from collections.abc import Sequence
from pathlib import Path

from transformers import LlamaForCausalLM

from tools.demo.facts import FACTS
from tools.demo.measure import SpanRecall

_CARD = """\
---
license: apache-2.0
---

# The built-in demonstration model

A very small language model that comes with kvlite, so that `kvlite chat` answers on a machine without a network and
tests have a model that is not random. It holds simple conversations in plain English and says back what it was told.
It is a demonstration: it knows next to nothing, and what it says about the world may be wrong. For anything else, name a
real model, such as `kvlite chat qwen2.5-0.5b`.

| | |
|---|---|
| Architecture | Llama: {layers} layers, hidden size {hidden}, {query_heads} query heads, {kv_heads} KV heads of dimension {head_dim}, tied embeddings |
| Parameters | {parameters:,} (stored in bfloat16, computed with in float32) |
| Tokenizer | byte-level BPE, {vocab:,} entries, ChatML special tokens and template |
| Context | {context:,} tokens, the longest dialogues it was trained on |
| KV cache | {kv_bytes:,} bytes per token in float32 |
| Licence | Apache-2.0, like kvlite |

## Training

From scratch, by `python -m tools.demo.train`, on one CPU core: {minutes:.0f} minutes, {steps:,} batches, {tokens:,} tokens.
The loss, and the recall as it was learned: `tools/demo/training.svg` in the repository.

The data are dialogues written by the program `tools/demo/dialogues.py` from its own word lists and phrases; no text of
anyone else's was used, neither books nor dialogues of people. One word in eight (and one invented name, code, number,
price, date or time in eight) was held out of training.

## Measured

On dialogues with held-out words and unseen seeds, greedy, exported weights, the whole context in the cache:
loss {loss:.3f} nats per token of the answers.

| Tokens between a fact and its question | Questions | Answered with the right value |
|---|---|---|
{rows}

The facts are of {kinds} kinds (names, colours, cities, codes, prices, dates, lists, ...), often with others of the same kind
between; an answer counts when it holds the value as it was said. Where a fact was corrected or a list has grown, the
distance is from the last time it was said. {two_step_asked} of the questions take two steps ("My sister is called Ann. Ann lives in
Riga." and then "Where does my sister live?"): {two_step_right} of these were answered right. Days and months alone, hours of bookings
and small counts are too few to be held out.

## Limits

English only, and only phrases close to those in `facts.toml`, `small_talk.toml` and `phrases.py` of `tools/demo`; anything
else is answered with one of the sentences it knows. It does not reason, calculate, translate, summarise or follow instructions, and
says so when asked. Long or rare words may be copied wrongly. Past its context nothing was trained or measured.
"""  # noqa: E501


def write_card(
    model: LlamaForCausalLM,
    folder: Path,
    steps: int,
    tokens: int,
    seconds: float,
    loss: float,
    spans: Sequence[SpanRecall],
) -> None:
    """Write MODEL_CARD.md into the folder of the exported model."""
    config = model.config
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    kv_heads = config.num_key_value_heads or config.num_attention_heads
    rows = [
        f"| {span.over + 1} to {span.upto} | {span.asked} | {span.right} ({span.right / span.asked:.0%}) |"
        for span in spans
    ]
    text = _CARD.format(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        query_heads=config.num_attention_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        parameters=model.num_parameters(),
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        kv_bytes=config.num_hidden_layers * 2 * kv_heads * head_dim * 4,
        minutes=seconds / 60,
        steps=steps,
        tokens=tokens,
        loss=loss,
        rows="\n".join(rows),
        kinds=len(FACTS),
        two_step_right=sum(span.two_step_right for span in spans),
        two_step_asked=sum(span.two_step_asked for span in spans),
    )
    (folder / "MODEL_CARD.md").write_text(text, "utf-8")
