"""Measure the built-in model on held-out dialogues: its loss, and its recall by distance, greedily decoded."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from tools.demo.dialogues import Dialogue, write_dialogue
from tools.demo.examples import batch, loss_of
from tools.demo.tokenizer import END_OF_TEXT, TURN_END, TURN_START, render

DISTANCES = (64, 128, 256, 512, 1000, 2000)  # tokens between a fact and its question, upper ends
_ANSWER_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt that ends where the answer begins, the value it asks for, and how many tokens back that was said."""

    prompt: tuple[int, ...]
    value: str
    distance: int
    steps: int = 1  # 2 where the fact must be found through another one


@dataclass(frozen=True, slots=True)
class SpanRecall:
    """Right answers among the questions of one span of distances, in tokens; how many of them took two steps."""

    over: int
    upto: int
    right: int
    asked: int
    two_step_right: int = 0
    two_step_asked: int = 0


def _questions(tokenizer: Tokenizer, dialogue: Dialogue) -> Iterator[Question]:
    system = Dialogue(dialogue.system, ())
    text = [render(system)] + [render(Dialogue(None, (turn,))) for turn in dialogue.turns]
    ids = [tokenizer.encode(part).ids for part in text]
    for number, turn in enumerate(dialogue.turns):
        if turn.recall is None:
            continue
        ask = tokenizer.encode(f"{TURN_START}user\n{turn.user}{TURN_END}\n{TURN_START}assistant\n").ids
        said = turn.recall.said_in + 2  # parts up to and with the turn that said it; the system prompt is part 0
        since = sum(map(len, ids[said : number + 1])) + len(ask)
        yield Question((*chain.from_iterable(ids[: number + 1]), *ask), turn.recall.value, since, turn.recall.steps)


def held_out_questions(
    tokenizer: Tokenizer, seed: int, each: int, context: int
) -> dict[tuple[int, int], list[Question]]:
    """`each` questions per span of distances, at most one per span and dialogue, no longer than `context` tokens."""
    spans = [(over, upto) for over, upto in zip((0, *DISTANCES), DISTANCES, strict=False) if upto < context]
    found: dict[tuple[int, int], list[Question]] = {span: [] for span in spans}
    number = 0
    while any(len(questions) < each for questions in found.values()):
        dialogue = write_dialogue(f"{seed}/questions/{number}", context // 20, "held-out")
        fresh = dict.fromkeys(spans, True)
        for question in _questions(tokenizer, dialogue):
            if len(question.prompt) + _ANSWER_TOKENS > context:
                break
            for over, upto in spans:
                if fresh[over, upto] and over < question.distance <= upto and len(found[over, upto]) < each:
                    found[over, upto].append(question)
                    fresh[over, upto] = False
        number += 1
    return found


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, tokenizer: Tokenizer, seed: int, length: int, rows: int = 16) -> float:
    """Loss in nats per token of the assistant's answers, on held-out dialogues."""
    ids, weights = batch(tokenizer, f"{seed}/held-out", "held-out", rows, length)
    return float(loss_of(model, ids, (weights == 1).float()))


@torch.inference_mode()
def answer(model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: tuple[int, ...]) -> str:
    """The greedy answer to a prompt, without its end-of-turn token."""
    stop = [tokenizer.token_to_id(token) for token in (TURN_END, END_OF_TEXT)]
    ids = torch.tensor([prompt])
    out = model.generate(  # type: ignore[misc]  # transformers types self as a protocol it does not meet
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=_ANSWER_TOKENS,
        eos_token_id=stop,
        pad_token_id=stop[1],
    )
    return str(tokenizer.decode(out[0, len(prompt) :].tolist(), skip_special_tokens=True))


def recall_by_distance(
    model: LlamaForCausalLM, tokenizer: Tokenizer, *, seed: int, each: int, context: int
) -> list[SpanRecall]:
    """Recall of held-out words per span of distances; an answer is right when it holds the value."""
    spans = []
    for (over, upto), questions in held_out_questions(tokenizer, seed, each, context).items():
        right = [question for question in questions if question.value in answer(model, tokenizer, question.prompt)]
        two_step = [sum(question.steps == 2 for question in some) for some in (right, questions)]
        spans.append(SpanRecall(over, upto, len(right), len(questions), *two_step))
    return spans
