"""Small tokenizers of each kind, trained on a few lines in memory, and chat templates of each style, written by hand."""

from __future__ import annotations

from functools import cache
from itertools import product

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "The quick brown fox jumps over the lazy dog. User: hello\nAssistant: hi there",
    "[INST] <<SYS>> system user assistant model <|im_start|> im_end start_header_id end_of_turn",
    "你好，世界 – naïve café, привет 🙂 🧑‍🚀 ನಮಸ್ಕಾರ",
    "### Instruction: think </think> answer it's don't a ' b",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_TRIMMED = CHATML.replace("m['content']", "m['content'] | trim | upper")
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
R1 = QWEN3.replace("{%- if enable_thinking is defined and enable_thinking is false %}", "{%- if true %}").replace(
    "'<think>\\n\\n</think>\\n\\n'", "'<think>\\n'"
)
LLAMA2 = """{%- if messages[0]['role'] == 'system' %}
    {%- set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}
{%- else %}
    {%- set loop_messages = messages %}{% set system_message = false %}
{%- endif %}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if loop.index0 == 0 and system_message %}
        {%- set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {%- else %}
        {%- set content = message['content'] %}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + content.strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}"""
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
    "{% if loop.first and m['role'] == 'system' %}{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\\n\\n' }}{% endif %}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
MISTRAL = """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}{% set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}"""
VICUNA = """A chat between a curious user and an assistant.{{ ' ' }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{{ message['content'] + ' ' }}
    {%- elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}
    {%- else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
{{- 'ASSISTANT:' }}"""
HARMONY = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m['content'] + '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m['role'] + '<|message|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)

# template, special tokens (the first two are BOS and EOS), added tokens that are not special
STYLES: dict[str, tuple[str | None, list[str], list[str]]] = {
    "chatml": (CHATML, ["<|endoftext|>", "<|im_end|>", "<|im_start|>"], []),
    "chatml-trimmed": (CHATML_TRIMMED, ["<|endoftext|>", "<|im_end|>", "<|im_start|>"], []),
    "qwen3": (QWEN3, ["<|endoftext|>", "<|im_end|>", "<|im_start|>"], ["<think>", "</think>"]),
    "r1": (R1, ["<|endoftext|>", "<|im_end|>", "<|im_start|>"], ["<think>", "</think>"]),
    "llama2": (LLAMA2, ["<s>", "</s>"], []),
    "llama3": (
        LLAMA3,
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        [],
    ),
    "gemma": (GEMMA, ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], []),
    "mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], []),
    "vicuna": (VICUNA, ["<s>", "</s>"], []),
    "harmony": (HARMONY, ["<|startoftext|>", "<|return|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>"], []),
    "base": (None, ["<s>", "</s>"], []),
}
KINDS = ("byte-level", "sentencepiece", "sentencepiece-legacy", "wordpiece")
STYLES_AND_KINDS = [
    *product(STYLES, ["byte-level", "sentencepiece"]),
    ("llama2", "sentencepiece-legacy"),
    ("chatml", "wordpiece"),
]


@cache
def tokenizer(style: str = "chatml", kind: str = "byte-level", *, normalized: bool = False) -> PreTrainedTokenizerFast:
    """A trained tokenizer of about 450 tokens; `normalized`: special tokens are looked for in normalized text."""
    template, special, added = STYLES[style]
    backend = _BACKENDS[kind]()
    tokens = [AddedToken(content, special=True, normalized=normalized) for content in special]
    backend.add_special_tokens(tokens)
    backend.add_tokens([AddedToken(content, special=False, normalized=False) for content in added])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=tokens[0], eos_token=tokens[1])
    wrapped.chat_template = template
    return wrapped


def _byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


def _sentencepiece(*, legacy: bool = False) -> Tokenizer:
    """Like Llama's: spaces are ▁, bytes stand in for unknown characters, a space is put in front of the text.

    Legacy tokenizers put it in front of each stretch between special tokens.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trained.train_from_iterator(LINES[:2], trainers.BpeTrainer(vocab_size=150, show_progress=False))
    merges = trained.get_vocab()
    vocabulary = {token: index for index, token in enumerate([*BYTES, *sorted(merges, key=merges.__getitem__)])}
    state = __import__("json").loads(trained.to_str())["model"]["merges"]
    backend = Tokenizer(models.BPE(vocabulary, [tuple(pair) for pair in state], byte_fallback=True, fuse_unk=True))
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(strip)
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
    backend.train_from_iterator(
        LINES, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    )
    return backend


_BACKENDS = {
    "byte-level": _byte_level,
    "sentencepiece": _sentencepiece,
    "sentencepiece-legacy": lambda: _sentencepiece(legacy=True),
    "wordpiece": _wordpiece,
}
