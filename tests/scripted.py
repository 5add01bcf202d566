"""Models that say what a script tells them, so that the expected text of a test is exact.

The embedding of each word is a vector of its own, attention and MLP add nothing, and the head gives the logits of what
the script has next: after its last word alone, a model knows what comes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "</s>"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}{{ 'assistant : ' if add_generation_prompt }}"
)
Script = Mapping[str, Sequence[str]]
"""Words that may follow a word, the likeliest first; behind any other word the answer ends."""


def chain(*words: str) -> dict[str, list[str]]:
    """The script in which each word follows the one before it."""
    return {word: [following] for word, following in pairwise(words)}


def scripted_tokenizer(words: Sequence[str], special: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words between blanks; END and `special` are special tokens."""
    vocab = {word: index for index, word in enumerate(dict.fromkeys(["<pad>", END, *special, *words]))}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (END, *special)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token="<pad>")


def scripted_model(script: Script, tokenizer: PreTrainedTokenizerFast, **config: Any) -> LlamaForCausalLM:
    """A Llama of one layer that follows `script`; logits fall by 1 from one alternative to the next."""
    vocab, heads = len(tokenizer), 4
    hidden = -(-vocab // (8 * heads)) * 8 * heads
    fields = {"num_hidden_layers": 1, "num_attention_heads": heads, "num_key_value_heads": heads, **config}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab, hidden_size=hidden, intermediate_size=32, **fields)).eval()
    layer = model.model.layers[0]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(hidden)[:vocab])
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        head = model.lm_head.weight.zero_()
        for word, index in tokenizer.get_vocab().items():
            for rank, following in enumerate(dict.fromkeys([*script.get(word, ()), END])):
                head[tokenizer.convert_tokens_to_ids(following), index] = (8.0 - rank) / hidden**0.5  # the norm's gain
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def write_scripted(
    folder: Path,
    script: Script,
    *,
    generation: Mapping[str, Any] | None = None,
    special: Sequence[str] = (),
    also: Sequence[str] = ("user", "assistant", "system", ":", "go"),
    template: str | None = TEMPLATE,
    **config: Any,
) -> PreTrainedTokenizerFast:
    """Save the model that follows `script` into `folder`, with `generation` over its generation_config.json.

    `also` are words that prompts hold besides those of the script; words in `generation`'s lists stand for their ids.
    """
    followers = [word for following in script.values() for word in following]
    tokenizer = scripted_tokenizer([*also, *script, *followers], special)
    tokenizer.chat_template = template
    scripted_model(script, tokenizer, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "generation_config.json"
    said = json.loads(path.read_text("utf-8")) | ids(dict(generation or {}), tokenizer)
    path.write_text(json.dumps(said), "utf-8")
    return tokenizer


def ids(value: Any, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Settings of a generation_config.json with the ids of words in place of the words, but in stop strings."""
    if isinstance(value, dict):
        return {name: one if name == "stop_strings" else ids(one, tokenizer) for name, one in value.items()}
    if isinstance(value, list):
        return [ids(one, tokenizer) for one in value]
    return tokenizer.convert_tokens_to_ids(value) if isinstance(value, str) else value
