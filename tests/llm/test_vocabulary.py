"""Tokens that a tokenizer adds beyond the model's embedding, as Gemma 3 publishes one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvlite import LLM, UsageError
from tests.architectures import tiny_model
from tests.gguf.gguf_file import byte_level_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 300 tokens whose tokenizer adds the special token `<image>` with id 300."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama", {}, vocab_size=300).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer(), eos_token="</s>")
    filler = [f"<unused{number}>" for number in range(300 - len(tokenizer))]
    tokenizer.add_special_tokens({"additional_special_tokens": [*filler, "<image>"]})
    assert tokenizer.convert_tokens_to_ids("<image>") == 300
    tokenizer.save_pretrained(folder)
    return folder


def test_the_model_runs_and_only_a_prompt_with_such_a_token_is_refused(folder: Path) -> None:
    with LLM(str(folder), kv_budget="64tok") as llm:
        (answer,) = llm.generate(["the cat"], max_tokens=8, raw=True)
        assert answer.finish_reason == "length"
        with pytest.raises(UsageError, match=r"the prompt has the token 300, which the model has no embedding for"):
            llm.generate(["<image>the cat"], max_tokens=8, raw=True)
