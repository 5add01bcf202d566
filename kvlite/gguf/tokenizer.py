"""The tokenizer of a GGUF file: vocabulary, merges and the way text is cut, as `tokenizers` has them.

A file names how its vocabulary cuts text (`tokenizer.ggml.pre`); the expressions are those of llama.cpp
(src/llama-vocab.cpp of ggml-org/llama.cpp). A name that is not known is refused: another cut gives other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvlite.errors import BrokenModel, UnsupportedModel
from kvlite.gguf.header import Header, one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_LETTERS}|\p{{N}}{{1,3}}{_REST}"
_QWEN2 = rf"{_LETTERS}|\p{{N}}{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O = _CASED % (_ENDING, _ENDING) + r"|\p{N}{1,3}" + _TAIL
_TEKKEN = _CASED % ("", "") + r"|\p{N}" + _TAIL
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CUTS: dict[str, Sequence[str]] = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "dbrx", "smaug-bpe"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"), (_QWEN2,)),
    **dict.fromkeys(("gpt-2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "jais", "trillion"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), (_GPT4O,)),
    "tekken": (_TEKKEN,),
}
_KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>")  # of Phi-3, whose other special tokens take what follows them
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "tekken")
"""Cuts whose words are one token where the vocabulary has them, whatever the merges say; text begins with BOS."""
_PIECES = ("llama", "gemma4")
"""Kinds of vocabularies that hold SentencePiece's pieces; of the second the file has the merges."""
_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|return|>", "<|call|>",
    "<|end_of_text|>", "<|endoftext|>", "<|end_of_turn|>", "<end_of_utterance>", "<EOT>",
    "<|tool_response>",
)  # fmt: skip


def build_tokenizer(header: Header) -> Tokenizer:
    """The tokenizer of the file. Raises as `cut_of`, and BrokenModel where the vocabulary is not whole."""
    cut, tokens = cut_of(header), _tokens(header)
    with one_line(header.path):
        tokenizer = _sentencepiece(header, tokens) if cut is None else _byte_level(header, tokens, cut)
        _add_special(tokenizer, header, tokens)
    return tokenizer


def cut_of(header: Header) -> Sequence[str] | None:
    """The expressions that cut text before byte pairs are joined; None for a SentencePiece vocabulary.

    Raises UnsupportedModel where the file cuts text in a way that is not known, BrokenModel where it has no merges.
    """
    kind, pre = header.metadata.get("tokenizer.ggml.model"), header.metadata.get("tokenizer.ggml.pre")
    if kind in ("gpt2", "gemma4") and not header.metadata.get("tokenizer.ggml.merges"):
        raise BrokenModel(
            f"{header.path.name} has no merges (tokenizer.ggml.merges), so its tokens would be wrong; "
            "get another conversion"
        )
    if kind in _PIECES:
        return None
    if kind != "gpt2":
        raise UnsupportedModel(
            f"{header.path.name} has a tokenizer of kind {kind!r}; kvlite reads gpt2, {' and '.join(_PIECES)}"
        )
    if pre is None:
        raise UnsupportedModel(
            f"{header.path.name} does not say how it cuts text (tokenizer.ggml.pre); get a newer conversion"
        )
    if pre not in _CUTS:
        raise UnsupportedModel(
            f"{header.path.name} cuts text as {pre!r}, which kvlite does not know, so its tokens would be wrong; "
            "use the model's safetensors repository"
        )
    return _CUTS[pre]


def tokenizer_config(header: Header) -> dict[str, Any]:
    """The tokenizer_config.json of the file: special tokens, whether BOS is added, the chat template."""
    tokens = _tokens(header)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None and 0 <= index < len(tokens):
            config[f"{name}_token"] = tokens[index]
    if "tokenizer.chat_template" in header.metadata:
        config["chat_template"] = header.metadata["tokenizer.chat_template"]
    return config


def added_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """The added tokens by id as tokenizer_config.json has them; without, transformers looks through tokenizer.json."""
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    found = tokenizer.get_added_tokens_decoder()
    return {str(index): {name: getattr(token, name) for name in names} for index, token in sorted(found.items())}


def end_tokens(header: Header) -> list[int]:
    """Ids that end an answer: those the file names, and control tokens that end a turn wherever they occur."""
    named = [header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    tokens, types = _tokens(header), header.metadata.get("tokenizer.ggml.token_type", ())
    by_text = [
        index
        for index, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in (_CONTROL, _USER_DEFINED) and token in _ENDS
    ]
    ends = {index for index in (*named, *by_text) if index is not None}
    by_name = {tokens[index]: index for index in ends if 0 <= index < len(tokens)}
    if {"<|return|>", "<|call|>"} <= set(by_name):  # gpt-oss, where <|end|> stands between the parts of an answer
        ends -= {by_name.get("<|end|>")}
    return sorted(ends)


def adds_bos(header: Header) -> bool:
    """True where text begins with BOS: as the file says, else where llama.cpp has it so for such a vocabulary."""
    is_sentencepiece = header.metadata.get("tokenizer.ggml.model") in _PIECES
    usual = is_sentencepiece or header.metadata.get("tokenizer.ggml.pre") in _WHOLE_WORDS
    return bool(header.metadata.get("tokenizer.ggml.add_bos_token", usual))


def _tokens(header: Header) -> list[str]:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise BrokenModel(f"{header.path.name} has no tokenizer; use a GGUF file that llama.cpp can chat with")
    return list(tokens)


def _byte_level(header: Header, tokens: Sequence[str], cut: Sequence[str]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    whole_words = header.metadata["tokenizer.ggml.pre"] in _WHOLE_WORDS
    model = models.BPE(vocab=_vocabulary(tokens), merges=_file_merges(header), ignore_merges=whole_words)
    tokenizer = Tokenizer(model)
    if cut == (_QWEN2,):
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(header: Header, tokens: Sequence[str]) -> Tokenizer:
    """Byte-pair encoding over SentencePiece's pieces, whose merges are the file's or follow from their scores."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = _vocabulary(tokens)
    unknown = header.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    has_merges = header.metadata.get("tokenizer.ggml.model") == "gemma4"
    model = models.BPE(
        vocab=vocabulary,
        merges=_file_merges(header) if has_merges else _merges(header, tokens, vocabulary),
        unk_token=tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    begins = header.metadata.get("tokenizer.ggml.add_space_prefix", not has_merges)
    steps = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *steps] if begins else steps)
    strip = [decoders.Strip(" ", 1, 0)] if begins else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(tokens):
        vocabulary.setdefault(token, index)
    return vocabulary


def _file_merges(header: Header) -> list[tuple[str, str]]:
    """The merges that the file lists, the first to be made first."""
    merges = [merge.partition(" ") for merge in header.metadata.get("tokenizer.ggml.merges", ())]
    return [(first, second) for first, _, second in merges]


def _merges(header: Header, tokens: Sequence[str], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, the best score first."""
    scores = header.metadata.get("tokenizer.ggml.scores", ())
    if len(scores) != len(tokens):
        raise BrokenModel(f"{header.path.name} has {len(scores)} scores for {len(tokens)} tokens; download it again")
    found = []
    for token, score in zip(tokens, scores, strict=True):
        parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        parts = [part for part in parts if part[0] in vocabulary and part[1] in vocabulary]
        parts.sort(key=lambda part: (vocabulary[part[0]], vocabulary[part[1]]))
        found += [(-score, part) for part in parts]
    return [part for _, part in sorted(found, key=lambda item: item[0])]


def _add_special(tokenizer: Tokenizer, header: Header, tokens: Sequence[str]) -> None:
    from tokenizers import AddedToken, processors

    types = header.metadata.get("tokenizer.ggml.token_type", ())
    strips = any(name in str(header.metadata.get("general.name", "")).lower() for name in ("phi-3", "phi3"))
    for wanted, is_special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [
            AddedToken(token, normalized=False, special=is_special, rstrip=strips and token not in _KEEPS_SPACE)
            for token, kind in zip(tokens, types, strict=False)
            if kind == wanted or (is_special and kind == _UNKNOWN) or (strips and is_special and token == "</s>")
        ]
        (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)(added)
    bos = header.metadata.get("tokenizer.ggml.bos_token_id")
    if adds_bos(header) and bos is not None:
        begin = tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(f"{begin} $A", None, [(begin, bos)])
