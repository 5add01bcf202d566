"""The training script: it runs, goes on where it stopped, and writes a folder that transformers loads."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.demo.examples import batch
from tools.demo.measure import held_out_questions
from tools.demo.train import Progress, Recipe, Run, main

TINY = Recipe(
    vocab=400,
    hidden=16,
    intermediate=16,
    layers=1,
    query_heads=2,
    kv_heads=1,
    head_dim=8,
    context=128,
    batch_tokens=256,
    questions=1,
)


def weights_after(folder, *steps):
    for upto in steps:
        run = Run(TINY, folder, 3, Progress(None, upto))
        run.train()
    return run.model.state_dict()


def test_it_writes_a_model_that_transformers_loads(tmp_path):
    main(["--out", str(tmp_path), "--steps", "2", "--seed", "3"], TINY)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    assert len(tokenizer) == model.config.vocab_size == TINY.vocab
    assert "2 batches, 512 tokens" in (tmp_path / "MODEL_CARD.md").read_text("utf-8")


def test_it_goes_on_where_it_stopped(tmp_path):
    first = Run(TINY, tmp_path, 3, Progress(None, 1))
    first.train()
    second = Run(TINY, tmp_path, 3, Progress(None, 2))
    assert (second.progress.step, second.progress.tokens) == (1, 256)
    second.train()
    assert second.progress.step == 2


def test_a_seed_gives_the_same_weights(tmp_path):
    one = weights_after(tmp_path / "one", 2)
    two = weights_after(tmp_path / "two", 2)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_only_answers_have_full_weight(tmp_path):
    tokenizer = Run(TINY, tmp_path, 3, Progress(None, 0)).tokenizer
    ids, weights = batch(tokenizer, "0", "train", 4, 128)
    answered = tokenizer.decode(ids[weights == 1].tolist(), skip_special_tokens=False)
    assert answered.count("<|im_end|>") >= 8
    assert "user\n" not in answered
    assert "assistant\n" not in answered


def test_questions_lie_at_the_distances_they_claim(tmp_path):
    tokenizer = Run(TINY, tmp_path, 3, Progress(None, 0)).tokenizer
    for (over, upto), questions in held_out_questions(tokenizer, 0, 2, 512).items():
        for question in questions:
            assert over < question.distance <= upto
            told = tokenizer.decode(question.prompt[: -question.distance], skip_special_tokens=False)
            assert all(word in told for word in question.value.split())


def test_short_dialogues_come_first_and_the_rate_ends_at_zero():
    recipe = Recipe()
    assert [recipe.length(share) for share in (0, 0.3, 0.4, 0.6, 0.99)] == [128, 256, 512, 1024, 2048]
    assert recipe.rate(0) == 0
    assert recipe.rate(0.3) == recipe.learning_rate
    assert recipe.rate(0.999) < 0.01 * recipe.learning_rate
