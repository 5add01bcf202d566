"""Small tokenizers of each kind, trained on a few lines in memory, and chat templates of each style."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]

LINES = [
    "The quick brown fox jumps over the lazy dog. User: hello\nAssistant: hi there",
    "[INST] <<SYS>> system user assistant model <|im_start|> im_end start_header_id end_of_turn",
    "你好，世界 – naïve café, привет 🙂 🧑‍🚀 ನಮಸ್ಕಾರ",
    "### Instruction: think </think> answer it's don't a ' b",
]
CHATML = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
# Special tokens, of which the first two are BOS and EOS, and added tokens that are not special.
STYLES: dict[str, tuple[list[str], list[str]]] = {
    "chatml": (CHATML, []),
    "chatml-trimmed": (CHATML, []),
    "qwen3": (CHATML, ["<think>", "</think>"]),
    "r1": (CHATML, ["<think>", "</think>"]),
    "llama2": (["<s>", "</s>"], []),
    "llama3": (["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], []),
    "gemma": (["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], []),
    "mistral": (["<s>", "</s>", "[INST]", "[/INST]"], []),
    "vicuna": (["<s>", "</s>"], []),
    "harmony": (["<|startoftext|>", "<|return|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>"], []),
    "cohere": (
        ["<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"],
        ["<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"],
    ),
    "base": (["<s>", "</s>"], []),  # no chat template
}
STYLES_AND_KINDS = [
    *product(STYLES, ["byte-level", "sentencepiece"]),
    ("llama2", "sentencepiece-legacy"),
    ("chatml", "wordpiece"),
]


@cache
def _tokenizer(style: str = "chatml", kind: str = "byte-level", normalized: bool = False) -> PreTrainedTokenizerFast:
    special, added = STYLES[style]
    backend = _BACKENDS[kind]()
    tokens = [AddedToken(content, special=True, normalized=normalized) for content in special]
    backend.add_special_tokens(tokens)
    backend.add_tokens([AddedToken(content, special=False, normalized=False) for content in added])
    unknown = "[UNK]" if kind == "wordpiece" else None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=tokens[0], eos_token=tokens[1], unk_token=unknown
    )
    template = Path(__file__).parent / "templates" / f"{style}.jinja"
    tokenizer.chat_template = template.read_text() if template.exists() else None
    return tokenizer


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    """Makes one of about 450 tokens: `style`, `kind`, and whether special tokens are looked for in normalized text."""
    return _tokenizer


@pytest.fixture(scope="session", params=STYLES_AND_KINDS, ids="-".join)
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return _tokenizer(*request.param)


@pytest.fixture(scope="session", params=["byte-level", "sentencepiece", "sentencepiece-legacy", "wordpiece", "trained"])
def any_kind(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """One tokenizer of each kind, and one of a trained model."""
    if request.param != "trained":
        return _tokenizer("qwen3", request.param)
    return AutoTokenizer.from_pretrained(request.getfixturevalue("stories260k"))


def _byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(LINES, trainer)
    return backend


def _sentencepiece(*, legacy: bool = False) -> Tokenizer:
    """Like Llama's: spaces are ▁, bytes stand in for unknown characters, a space is put in front of the text.

    Legacy tokenizers put it in front of each stretch between special tokens.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trained.train_from_iterator(LINES[:2], trainers.BpeTrainer(vocab_size=150, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), *sorted(model["vocab"], key=model["vocab"].__getitem__)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return backend


def _wordpiece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    backend.train_from_iterator(LINES, trainer)
    return backend


_BACKENDS = {
    "byte-level": _byte_level,
    "sentencepiece": _sentencepiece,
    "sentencepiece-legacy": lambda: _sentencepiece(legacy=True),
    "wordpiece": _wordpiece,
}
