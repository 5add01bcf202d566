"""Dialogues as training examples: ids, how much each token counts, and the loss."""

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from tools.demo.dialogues import write_dialogue
from tools.demo.tokenizer import TURN_END, TURN_START, render
from tools.demo.vocabulary import Split

_USER_WEIGHT = 0.1  # what users say can hardly be predicted; only its form is worth learning


def batch(tokenizer: Tokenizer, seed: str, split: Split, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and loss weights of dialogues cut to `length` tokens, both [rows, length + 1]."""
    # A turn takes at least ten tokens, so length / 10 turns always fill a row.
    texts = [render(write_dialogue(f"{seed}/{row}", length // 10 + 1, split)) for row in range(rows)]
    ids = torch.tensor([encoding.ids[: length + 1] for encoding in tokenizer.encode_batch(texts)])
    start, end = (tokenizer.token_to_id(token) for token in (TURN_START, TURN_END))
    assistant = tokenizer.encode("assistant\n").ids
    weights = torch.full(ids.shape, _USER_WEIGHT)
    for row, tokens in enumerate(ids.tolist()):
        answering = False
        for at, token in enumerate(tokens):
            if answering:
                weights[row, at] = 1.0
                answering = token != end
            elif token == assistant[-1]:
                answering = tokens[max(0, at - len(assistant)) : at + 1] == [start, *assistant]
    return ids, weights


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss in nats, weighted per token."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    losses = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    kept = weights[:, 1:].flatten()
    return (losses * kept).sum() / kept.sum()
