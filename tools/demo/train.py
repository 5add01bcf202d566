"""Train the built-in model from scratch on generated dialogues, on one CPU core.

    python -m tools.demo.train --out DIR --minutes 112 --seed 0

DIR receives the model's files and its card; DIR/training holds the log and a checkpoint, from which the same command
goes on after an interruption. Batches and initial weights follow from the seed alone; with `--steps` in place of
`--minutes` the whole schedule does too.
"""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tools.demo.card import write_card
from tools.demo.examples import batch, loss_of
from tools.demo.measure import held_out_loss, recall_by_distance
from tools.demo.tokenizer import END_OF_TEXT, TURN_END, save_tokenizer, train_tokenizer

log = logging.getLogger("tools.demo.train")

_CHECKPOINT_EVERY = 1000  # steps


@dataclass(frozen=True, slots=True)
class Recipe:
    """The model and its training; the defaults are those of the built-in model."""

    vocab: int = 1024
    hidden: int = 160
    intermediate: int = 432
    layers: int = 4
    query_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 1e5  # leaves half of the dimensions almost unturned over the whole context
    context: int = 2048  # the longest dialogues trained on, tokens
    batch_tokens: int = 2048  # of a batch, which has two dialogues at least
    learning_rate: float = 2e-3
    warmup: float = 0.01  # share of the run
    decay_from: float = 0.5  # share of the run after which the learning rate falls to zero
    stages: tuple[tuple[float, int], ...] = (
        (0.24, 128),
        (0.34, 256),
        (0.50, 512),
        (0.75, 1024),
        (1.0, 2048),
    )
    questions: int = 200  # held-out recall questions per span of distances in the card

    def length(self, progress: float) -> int:
        """The dialogue length in tokens at a share of the run: short ones first, where recall is learned soonest."""
        return min(self.context, next(length for upto, length in self.stages if progress < upto))

    def rate(self, progress: float) -> float:
        """The learning rate at a share of the run."""
        return self.learning_rate * min(1, progress / self.warmup, (1 - progress) / (1 - self.decay_from))


@dataclass(slots=True)
class Progress:
    """The progress of a run, and its end: after `minutes` of training or after `steps`."""

    minutes: float | None
    steps: int | None
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def share(self) -> float:
        if self.steps is not None:
            return self.step / self.steps
        assert self.minutes is not None
        return self.seconds / (60 * self.minutes)


def new_model(recipe: Recipe, tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    """A Llama with initial weights from the seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=recipe.vocab,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.query_heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(TURN_END),
        pad_token_id=tokenizer.token_to_id(END_OF_TEXT),
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def _optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)


class Run:
    """One training run in a folder: model, optimizer and progress, saved and taken up together."""

    def __init__(self, recipe: Recipe, out: Path, seed: int, progress: Progress) -> None:
        self.recipe, self.out, self.seed, self.progress = recipe, out, seed, progress
        self._folder = out / "training"
        self._folder.mkdir(parents=True, exist_ok=True)
        saved = self._folder / "tokenizer.json"
        if not saved.exists():
            train_tokenizer(seed, vocab=recipe.vocab).save(str(saved))
        self.tokenizer = Tokenizer.from_file(str(saved))
        self.model = new_model(recipe, self.tokenizer, seed)
        self._optimizer = _optimizer(self.model)
        self._load()

    def train(self) -> None:
        """Train to the end of the run, with a log line and a checkpoint every few hundred steps."""
        while (share := self.progress.share) < 1:
            began = time.monotonic()
            loss = self._step(share)
            self.progress.seconds += time.monotonic() - began
            if self.progress.step % _CHECKPOINT_EVERY == 0:
                self._note(loss)
                self._save()
        self._save()

    def _step(self, share: float) -> float:
        length = self.recipe.length(share)
        rows = max(2, self.recipe.batch_tokens // length)
        ids, weights = batch(self.tokenizer, f"{self.seed}/train/{self.progress.step}", "train", rows, length)
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.rate(share)
        loss = loss_of(self.model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.progress.step += 1
        self.progress.tokens += rows * length
        return float(loss.detach())

    def _note(self, loss: float) -> None:
        length = self.recipe.length(min(self.progress.share, 0.999))
        spans = recall_by_distance(self.model, self.tokenizer, seed=self.seed, each=10, context=length)
        line = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "seconds": round(self.progress.seconds),
            "length": length,
            "loss": round(loss, 4),
            "held_out_loss": round(held_out_loss(self.model, self.tokenizer, self.seed, length), 4),
            "recall": {span.upto: span.right / span.asked for span in spans},
        }
        log.info(json.dumps(line))
        with (self._folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "progress": (self.progress.step, self.progress.tokens, self.progress.seconds),
        }
        partial = self._folder / "checkpoint.pt.partial"
        torch.save(state, partial)
        partial.replace(self._folder / "checkpoint.pt")

    def _load(self) -> None:
        path = self._folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.progress.step, self.progress.tokens, self.progress.seconds = state["progress"]
        log.info("going on from step %d", self.progress.step)


def export(run: Run) -> None:
    """Write the files of the model, as transformers reads them: bfloat16 weights, to be computed with in float32."""
    save_tokenizer(run.tokenizer, run.out, run.recipe.context)
    run.model.config.save_pretrained(run.out)
    stop = [run.tokenizer.token_to_id(token) for token in (TURN_END, END_OF_TEXT)]
    GenerationConfig(do_sample=False, eos_token_id=stop, pad_token_id=stop[1]).save_pretrained(run.out)
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in run.model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    save_file(weights, run.out / "model.safetensors", metadata={"format": "pt"})


def main(arguments: Sequence[str] | None = None, recipe: Recipe | None = None) -> None:
    """Train, export, measure the exported weights and write the card."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, its log and its checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and initial weights")
    ends = parser.add_mutually_exclusive_group(required=True)
    ends.add_argument("--minutes", type=float, help="train for this long")
    ends.add_argument("--steps", type=int, help="train for this many batches")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    recipe = recipe or Recipe()
    run = Run(recipe, options.out, options.seed, Progress(options.minutes, options.steps))
    run.train()
    export(run)
    measured = LlamaForCausalLM.from_pretrained(options.out)
    unseen = options.seed + 1  # the log watched the questions of the run's own seed
    loss = held_out_loss(measured, run.tokenizer, unseen, recipe.context)
    spans = recall_by_distance(measured, run.tokenizer, seed=unseen, each=recipe.questions, context=recipe.context)
    progress = run.progress
    write_card(measured, options.out, progress.step, progress.tokens, progress.seconds, loss, spans)


if __name__ == "__main__":
    main()
