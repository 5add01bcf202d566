"""Whatever is wrong with what kvlite is given: one line says it, the exit code is right and nothing is lost."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import resource
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvlite.cli import main
from tests.bad_input import WHOLE, Model, Row, fields, header, lines, model, renamed, whole_model
from tests.hub_server import private_hub
from tests.model_folder import model_files
from tests.program import finish, start

LONGEST_LINE = 500

GREET = {"id": "a", "prompt": "Hello", "max_tokens": 3}
BYE = {"id": "z", "prompt": "Good bye", "max_tokens": 3}
LETTERS = " ".join("abcdefghijklmnopqrstuvwxyz")
SHARDS = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}


def batch(*between: object) -> dict[str, bytes]:
    """The file in.jsonl: two good lines around the others."""
    return {"in.jsonl": lines(GREET, *between, BYE)}


WORDS = [
    Row("no command of this name", "rnu demo hi", 2, "No such command"),
    Row("no option of this name", "run demo hi --budget 1GB", 2, "--budget"),
    Row("a budget of nothing", "run demo hi --kv-budget 0GB", 2, "'0GB' is nothing"),
    Row("a negative budget", "run demo hi --kv-budget -1GB", 2, "'-1GB' is not understood"),
    Row("a budget beyond this machine", "run demo hi --kv-budget 1000TB", 4, "free"),
    Row("a budget beyond any machine", "run demo hi --kv-budget 99999999999TB", 2, "more than any machine"),
    Row("a budget without a unit", "run demo hi --kv-budget 2", 2, "'2' is not understood"),
    Row("a budget in no unit", "run demo hi --kv-budget 2XB", 2, "2GB, 2GiB"),
    Row("a budget that is no number", "run demo hi --kv-budget nan", 2, "'nan' is not understood"),
    Row("a budget of more than all", "run demo hi --kv-budget 101%", 2, "at most 100%"),
    Row("an empty budget", "run demo hi --kv-budget ''", 2, "is not understood"),
    Row("a budget below what is protected", "run demo hi --kv-budget 3tok", 4, "smallest"),
    Row("a budget below one token", "run demo hi --kv-budget 10B", 4, "smallest"),
    Row("a temperature that is no number", "run demo hi -t nan", 2, "temperature is nan"),
    Row("an infinite temperature", "run demo hi -t inf", 2, "temperature is inf"),
    Row("a negative temperature", "run demo hi -t -1", 2, "temperature is -1"),
    Row("a temperature in words", "run demo hi -t hot", 2, "--temperature"),
    Row("a share above one", "run demo hi --top-p 2", 2, "top_p is 2"),
    Row("a share that is no number", "run demo hi --min-p nan", 2, "min_p is nan"),
    Row("a negative top-k", "run demo hi --top-k -1", 2, "top_k is -1"),
    Row("a penalty of nothing", "run demo hi --repetition-penalty 0", 2, "repetition_penalty is 0"),
    Row("no tokens to answer with", "run demo hi -n 0", 2, "--max-tokens"),
    Row("a seed in words", "run demo hi --seed abc", 2, "--seed"),
    Row("a seed beyond 64 bits", "run demo hi -t 1 --seed 99999999999999999999999", 2, "seed"),
    Row("an empty stop string", "run demo hi --stop ''", 2, "empty stop string"),
    Row("a time that is no number", "run demo hi --max-time nan", 2, "--max-time"),
    Row("no prompt tokens at once", "run demo hi --prefill-chunk 0", 2, "--prefill-chunk"),
    Row("no policy of this name", "run demo hi --kv-policy magic", 2, "magic"),
    Row("no setting of this name", "run demo hi --kv-policy window:sink=8", 2, "(did you mean 'sinks'?); its"),
    Row("a setting that cannot be", "plan demo --kv-policy h2o:decay=2", 2, "decay is 2.0; expected more than 0"),
    Row("no dtype of this name", "run demo hi --dtype float8", 2, "float8"),
    Row("no slot format of this name", "run demo hi --kv-dtype int3", 2, "int3"),
    Row("no device of this name", "run demo hi --device tpu7", 2, "tpu7"),
    Row("a device that is not there", "run demo hi --device cuda:99", 2, "cuda:99"),
    Row("no quantisation of this name", "run demo hi --quant 3bit", 2, "'3bit'"),
    Row("no way to be full of this name", "run demo hi --on-full explode", 2, "explode"),
    Row("full and yet evicting", "run demo hi --kv-policy full --on-full evict", 2, "contradicts --kv-policy full"),
    Row("full and yet planned to evict", "plan demo --kv-policy full --on-full evict", 2, "contradicts"),
    Row("two quantisations", "run demo hi --4bit --quant 8bit", 2, "contradicts"),
    Row("greedy and hot", "run demo hi --greedy -t 1", 2, "contradicts"),
    Row("JSON and only the code", "run demo hi --json -x", 2, "contradicts"),
    Row("raw and a system prompt", "run demo hi --raw -s x", 2, "contradicts"),
    Row("an empty prompt", "run demo ''", 2, "prompt is empty"),
    Row("a prompt of blanks", "run demo ' \t'", 2, "prompt is empty"),
    Row("an empty pipe", "run demo", 2, "prompt is empty", stdin=b"\n\n"),
    Row("an empty pipe into a chat", "chat demo", 2, "prompt is empty", stdin=b""),
    Row("stdin that is not UTF-8", "run demo", 2, "offset 3", stdin=b"caf\xe9"),
    Row("UTF-16 on stdin", "run demo", 2, "stdin is not UTF-8", stdin="Hello".encode("utf-16")),
    Row("a prompt file that is not there", "run demo -f no.txt", 2, "no.txt"),
    Row("a prompt file that is a folder", "run demo -f folder", 2, "folder", {"folder": None}),
    Row("a prompt file that is not UTF-8", "run demo -f a.txt", 2, "offset 1", {"a.txt": b"a\xff"}),
    Row("a system prompt from no file", "run demo hi -s @no.txt", 2, "no.txt"),
    Row("a record to no folder", "run demo hi --report no/r.json", 2, "--report"),
    Row("a record to what is a folder", "run demo hi --report .", 2, "a folder"),
    Row("a session outside the folder", "chat demo --session ../x", 2, "terminal", stdin=b"hi"),
    Row("a report on nothing", "report", 2, "no run is recorded"),
    Row("a report on a run nobody made", "report 01J", 2, "01J"),
    Row("a report on a file of another kind", "report ./r.json", 2, "r.json", {"r.json": b"[1"}),
    Row("a plan for no tokens", "plan demo --context 0", 2, "--context"),
    Row("a plan for no rows", "plan demo --batch-size 0", 2, "--batch-size"),
    Row("a plan for a budget without a unit", "plan demo --kv-budget 7", 2, "'7' is not understood"),
    Row("a plan for no GPU", "plan demo --vram lots", 2, "lots"),
    Row("a completion for no shell", "completion tcsh", 2, "tcsh"),
    Row("a removal of nothing", "rm qwen2.5-0.5b -y", 3, "not in the cache"),
    Row("a removal of a folder", "rm ./tiny -y", 2, "a folder of yours", model()),
]  # fmt: skip

SETTINGS = [
    Row("a config that is not TOML", "run demo hi", 2, "kvlite.toml is not valid TOML", {"kvlite.toml": b"a = = 1"}),
    Row("a config that is not UTF-8", "run demo hi", 2, "kvlite.toml is not valid", {"kvlite.toml": b"a = '\xff'"}),
    Row("a setting nobody knows", "run demo hi", 2, "did you mean 'kv-budget'", {"kvlite.toml": b"kv-budgte = '1GB'"}),
    Row("a setting of another type", "run demo hi", 2, "temperature is 'hot'", {"kvlite.toml": b"temperature = 'hot'"}),
    Row("a setting that is nonsense", "run demo hi", 2, "'huge'", {"kvlite.toml": b"kv-budget = 'huge'"}),
    Row("a file named by a folder's settings", "run demo hi", 2, "report names a file",
        {"kvlite.toml": b"report = 'notes.md'"}),
    Row("a machine named by a folder's settings", "batch in.jsonl -m demo", 2, "ray names a file or a machine",
        {"kvlite.toml": b"[batch]\nray = '1.2.3.4:6379'", **batch()}),
    Row("an adapter beside a folder's settings", "run demo hi", 2, "adapter names a file",
        {"kvlite.toml": b"adapter = './lora'"}),
    Row("a file read by a folder's settings", "run demo hi", 2, "system names a file",
        {"kvlite.toml": b"[run]\nsystem = '@key'", "key": b"secret"}),
    Row("a setting that must be typed", "run demo hi", 2, "each time", {"kvlite.toml": b"trust-remote-code = true"}),
    Row("a config that is not there", "--config no.toml run demo hi", 2, "cannot read no.toml"),
    Row("a variable in words", "run demo hi", 2, "KVLITE_TEMPERATURE", env={"KVLITE_TEMPERATURE": "hot"}),
    Row("a variable that is nonsense", "run demo hi", 2, "'huge'", env={"KVLITE_KV_BUDGET": "huge"}),
    Row("a default model that is not there", "run 'Hello there'", 3, "./no", env={"KVLITE_MODEL": "./no"}),
]  # fmt: skip

MODELS = [
    Row("nearly a model", "run demmo hi", 3, "did you mean demo?"),
    Row("no model at all", "run --model xyzzy hi", 3, "no model is called 'xyzzy'"),
    Row("no name", "run --model '' hi", 2, "name is empty"),
    Row("no name for a batch", "batch in.jsonl -m ''", 2, "name is empty", batch()),
    Row("no name for a plan", "plan ''", 2, "name is empty"),
    Row("a very long name", f"run --model {'x' * 5000} hi", 3, "no model is called"),
    Row("a folder that is not there", "run ./no hi", 3, "no folder './no'"),
    Row("a folder of nothing", "run ./empty hi", 3, "config.json", {"empty": None}),
    Row("a file for a folder", "run ./m hi", 3, "is a file", {"m": b"1"}),
    Row("a GGUF file cut off", "run ./m.gguf hi", 3, "cut off in its header; download it again", {"m.gguf": b"GGUF"}),
    Row("a GGUF file of nothing", "run ./m.gguf hi", 3, "cannot be read", {"m.gguf": b""}),
    Row("no GGUF file", "run ./m.gguf hi", 3, "is not a GGUF file", {"m.gguf": b"PK zip"}),
    Row("no such model of another program", "run ollama:none hi", 3, "no model is called 'ollama:none'"),
    Row("no such GGUF file", "run m.gguf hi", 3, "there is no file 'm.gguf'"),
    Row("a config.json that is not JSON", "run ./tiny hi", 3, "config.json", model(config__json=b"{'a': 1}")),
    Row("a config.json that is a list", "run ./tiny hi", 3, "config.json", model(config__json=b"[]")),
    Row("an empty config.json", "run ./tiny hi", 3, "config.json", model(config__json=b"")),
    Row("a config.json of deep brackets", "run ./tiny hi", 3, "config.json", model(config__json=b"[" * 100_000)),
    Row("a config.json of bytes", "run ./tiny hi", 3, "config.json", model(config__json=b'{"model_type": "\xff"}')),
    Row("no model type", "run ./tiny hi", 3, "model_type", model(config__json=fields(model_type=...))),
    Row("a model type that is a number", "run ./tiny hi", 3, "model_type", model(config__json=fields(model_type=7))),
    Row("no hidden size", "run ./tiny hi", 3, "hidden_size", model(config__json=fields(hidden_size=...))),
    Row("a string for a size", "run ./tiny hi", 3, "hidden_size", model(config__json=fields(hidden_size="64"))),
    Row("a negative number of layers", "run ./tiny hi", 3, "num_hidden_layers",
        model(config__json=fields(num_hidden_layers=-2))),
    Row("a billion layers", "run ./tiny hi", 3, "num_hidden_layers",
        model(config__json=fields(num_hidden_layers=10**9))),
    Row("no heads", "run ./tiny hi", 3, "num_attention_heads", model(config__json=fields(num_attention_heads=0))),
    Row("heads that do not divide", "run ./tiny hi", 3, "num_key_value_heads",
        model(config__json=fields(num_key_value_heads=3))),
    Row("a dtype nobody knows", "run ./tiny hi", 3, "float7", model(config__json=fields(dtype="float7"))),
    Row("a window of a string", "run ./tiny hi", 3, "max_position_embeddings",
        model(config__json=fields(max_position_embeddings="256"))),
    Row("a rotation nobody knows", "run ./tiny hi", 3, "warp",
        model(config__json=fields(rope_parameters={"rope_type": "warp", "rope_theta": 1e4}))),
    Row("a flag of nothing", "run ./tiny hi", 3, "attention_bias", model(config__json=fields(attention_bias=None))),
    Row("a padding token beyond the vocabulary", "run ./tiny hi", 3, "Padding_idx",
        model(config__json=fields(pad_token_id=10**6))),
    Row("an activation nobody knows", "run ./tiny hi", 3, "swoosh", model(config__json=fields(hidden_act="swoosh"))),
    Row("a family that cannot be bounded", "run ./tiny hi", 3, "bloom", model(config__json=fields(model_type="bloom"))),
    Row("a family nobody knows", "run ./tiny hi", 3, "frobnicator",
        model(config__json=fields(model_type="frobnicator"))),
    Row("an encoder", "run ./tiny hi", 3, "bert", model(config__json=fields(model_type="bert"))),
    Row("a quantisation nobody knows", "run ./tiny hi", 3, "q0",
        model(config__json=fields(quantization_config={"quant_method": "q0"}))),
    Row("a generation config that is not JSON", "run ./tiny hi", 3, "generation_config.json",
        model(generation_config__json=b"{")),
    Row("a generation config in words", "run ./tiny hi", 3, "temperature",
        model(generation_config__json=b'{"do_sample": true, "temperature": "hot"}')),
    Row("a generation config out of range", "run ./tiny hi", 3, "top_p is 7",
        model(generation_config__json=b'{"do_sample": true, "top_p": 7}')),
    Row("two quantisations, one of them the model's", "run ./tiny hi --4bit", 2, "quantised already",
        model(config__json=fields(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}))),
    Row("weights cut short", "run ./tiny hi", 3, "truncated", model(model__safetensors=lambda whole: whole[:-100])),
    Row("weights of nothing", "run ./tiny hi", 3, "truncated", model(model__safetensors=b"")),
    Row("weights that are text", "run ./tiny hi", 3, "safetensors",
        model(model__safetensors=b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")),
    Row("a header that is not JSON", "run ./tiny hi", 3, "header",
        model(model__safetensors=lambda whole: whole[:8] + b"?" + whole[9:])),
    Row("a header that promises more", "run ./tiny hi", 3, "truncated",
        model(model__safetensors=header(data_offsets=[0, 10**12], shape=[25 * 10**10]))),
    Row("a header whose shape is another", "run ./tiny hi", 3, "invalid shape",
        model(model__safetensors=header(shape=[3, 5]))),
    Row("a header with a dtype of nobody", "run ./tiny hi", 3, "F7",
        model(model__safetensors=header(dtype="F7"))),
    Row("weights of another size", "run ./tiny hi", 3, "mlp", model(config__json=fields(intermediate_size=80))),
    Row("weights that lack a tensor", "run ./tiny hi", 3, "lack",
        model(model__safetensors=renamed("layers.0.mlp.up_proj", "layers.0.mlp.oh_proj"))),
    Row("a shard that is not there", "run ./tiny hi", 3, "is missing",
        model(model__safetensors=None, model__safetensors__index__json=json.dumps(SHARDS).encode())),
    Row("an index that is a list", "run ./tiny hi", 3, "index",
        model(model__safetensors=None, model__safetensors__index__json=b"[]")),
    Row("an index that leaves its folder", "run ./tiny hi", 3, "no file name",
        model(model__safetensors=None, model__safetensors__index__json=b'{"weight_map": {"a": "../b.safetensors"}}')),
    Row("only a pickle", "run ./tiny hi", 3, "--allow-pickle",
        model(model__safetensors=None, pytorch_model__bin=b"\x80")),
    Row("a pickle that is none", "run ./tiny hi --allow-pickle", 3, "cannot be loaded",
        model(model__safetensors=None, pytorch_model__bin=b"\x80")),
    Row("only GGUF", "run ./tiny hi", 3, "q4.gguf is damaged", model(model__safetensors=None, q4__gguf=b"GGUF")),
    Row("only an adapter", "run ./tiny hi", 3, "adapter",
        model(model__safetensors=None, adapter_model__safetensors=b"1")),
    Row("no weights", "run ./tiny hi", 3, "no weights", model(model__safetensors=None)),
    Row("no tokenizer", "run ./tiny hi", 3, "no tokenizer", model(tokenizer__json=None)),
    Row("a tokenizer that is none", "run ./tiny hi", 3, "tokenizer", model(tokenizer__json=b"{}")),
    Row("a tokenizer of the future", "run ./tiny hi", 3, "Unknown tokenizer version",
        model(tokenizer__json=fields(version="9.0"))),
    Row("a tokenizer that cannot count", "run ./tiny hi", 3, "tokenizer",
        model(tokenizer_config__json=fields(model_max_length="long"))),
    Row("a tokenizer of a larger model", "run ./small hi", 3, "tokenizer has ids up to", {"small": Model("small")}),
    Row("a vocabulary of another size", "run ./tiny hi", 3, "[1024, 64] for [100, 64]",
        model(config__json=fields(vocab_size=100))),
    Row("a chat template that is none", "run ./tiny hi", 3, "template", model(chat_template__jinja=b"{% for %}")),
    Row("a chat template that fails", "run ./tiny hi", 2, "template", model(chat_template__jinja=b"{{ 1 / 0 }}")),
    Row("a prompt beyond positions that cannot be moved", f"run ./gpt2 '{LETTERS}'", 4,
        "model's 32 positions", {"gpt2": Model("gpt2")}),
]  # fmt: skip

BATCHES = [
    Row("no input", "batch no.jsonl -m demo", 2, "no.jsonl"),
    Row("an input that is a folder", "batch folder -m demo", 2, "folder", {"folder": None}),
    Row("lines that are no JSON", "batch in.jsonl -m demo", 5, "1 of 3", batch(b'{"id": "b", "prompt"'),
        answered="a z", failed="line-2"),
    Row("lines of other types", "batch in.jsonl -m demo", 5, "4 of 6", batch(7, None, [], True),
        answered="a z", failed="line-2 line-3 line-4 line-5"),
    Row("values of other types", "batch in.jsonl -m demo", 5, "6 of 8",
        batch({"id": "b", "prompt": 7}, {"id": "c", "prompt": "x", "max_tokens": "9"}, {"id": 5, "prompt": "x"},
              {"id": "e", "prompt": "x", "temperature": float("nan")}, {"id": "f", "messages": "hi"},
              {"id": "g", "prompt": "x", "stop": [1]}),
        answered="a z", failed="b c f g line-4 line-5"),
    Row("an empty prompt in a line", "batch in.jsonl -m demo", 5, "1 of 3", batch({"id": "b", "prompt": ""}),
        answered="a z", failed="b"),
    Row("nothing but deep brackets", "batch in.jsonl -m demo", 5, "1 of 3", batch(b"[" * 100_000),
        answered="a z", failed="line-2"),
    Row("a line that is not UTF-8", "batch in.jsonl -m demo", 5, "1 of 3", batch(b'{"id": "b", "prompt": "caf\xe9"}'),
        answered="a z", failed="line-2"),
    Row("one id twice in a file", "batch in.jsonl -m demo -o out.jsonl", 2, "line 2 has the id",
        batch({"id": "a", "prompt": "x"}) | {"out.jsonl": b""}),
    Row("one id twice in a pipe", "batch - -m demo", 5, "1 of 3",
        stdin=lines(GREET, {"id": "a", "prompt": "x"}, BYE), answered="a z", failed="a"),
    Row("another model's line", "batch in.jsonl", 5, "1 of 3",
        {"in.jsonl": lines({**GREET, "model": "demo"}, {"id": "b", "prompt": "x", "model": "phi"},
                           {**BYE, "model": "demo"})}, answered="a z", failed="b"),
    Row("lines that name no model there is", "batch in.jsonl", 3, "xyzzy",
        {"in.jsonl": lines({**GREET, "model": "xyzzy"})}),
    Row("a prompt beyond the positions", "batch in.jsonl -m ./gpt2", 5, "1 of 3",
        batch({"id": "b", "prompt": LETTERS}) | {"gpt2": Model("gpt2")},
        answered="a z", failed="b"),
    Row("a CSV without the column", "batch in.csv -m demo", 2, "'prompt'", {"in.csv": b"text\nhi\n"}),
    Row("a CSV with an open quote", "batch in.csv -m demo", 2, "not CSV", {"in.csv": b'prompt\n"hi\n'}),
    Row("a share beyond the shares", "batch in.jsonl -m demo --shard 5/4", 2, "5/4", batch()),
    Row("a batch of no rows", "batch in.jsonl -m demo --batch-size 0", 2, "--batch-size", batch()),
    Row("a line's time that is no number", "batch in.jsonl -m demo --timeout nan", 2, "--timeout", batch()),
    Row("a retry of nothing", "batch in.jsonl -m demo --retry-errors", 2, "-o", batch()),
    Row("rows that the budget cannot hold", "batch in.jsonl -m demo --kv-budget 2kB", 4, "smallest", batch()),
    Row("a summary to no folder", "batch in.jsonl -m demo --summary no/s.json", 2, "no/s.json", batch()),
    Row("an output in no folder", "batch in.jsonl -m demo -o no/out.jsonl", 1, "no/out.jsonl", batch()),
    Row("an output that is compressed", "batch in.jsonl -m demo -o out.jsonl.gz", 2, "| gzip > out.jsonl.gz", batch()),
    Row("a Parquet that is none", "batch in.parquet -m demo", 2, "as Parquet", {"in.parquet": b"PAR1...."}),
    Row("a gzip that is cut", "batch in.jsonl.gz -m demo", 2, "in the middle",
        {"in.jsonl.gz": gzip.compress(b"1")[:-5]}),
    Row("an output that is a folder", "batch in.jsonl -m demo -o folder", 1, "folder", batch() | {"folder": None}),
    Row("an output that is the input", "batch in.jsonl -m demo -o in.jsonl", 2, "is the input", batch()),
    Row("a summary that is the output", "batch in.jsonl -m demo -o out.jsonl --summary out.jsonl", 2,
        "the file of --summary (out.jsonl) is the output", batch()),
    Row("a record that is the input", "batch in.jsonl -m demo --report in.jsonl", 2,
        "something else than a run record", batch()),
    Row("a summary over something else", "batch in.jsonl -m demo --summary mine", 2, "something else than a summary",
        {"mine": b'{"id":"a"}', **batch()}),
    Row("a record over something else", "run demo hi --report mine", 2, "something else than a run record",
        {"mine": b'{"id":"a"}'}),
    Row("a summary that is the record", "batch in.jsonl -m demo --report s --summary s", 2, "of --summary", batch()),
    Row("a summary over the output's settings",
        "batch in.jsonl -m demo -o out.jsonl --summary out.jsonl.kvlite-meta.json", 2, "belongs to the output",
        batch()),
    Row("an output whose name is too long", f"batch in.jsonl -m demo -o {'x' * 250}", 2, "too long", batch()),
    Row("an input whose name is too long", f"batch {'x' * 300} -m demo -o out.jsonl", 2, "too long"),
    Row("a summary whose name is too long", f"batch in.jsonl -m demo --summary {'x' * 300}", 2, "too long", batch()),
    Row("a repair of the input", "batch in.jsonl -m demo -o out.jsonl --repair", 2, "leave out -o", batch()),
    Row("a repair of nothing", "batch out.jsonl --repair", 2, "no such output file"),
    Row("an output of something else", "batch in.jsonl -m demo -o notes.md", 2, "notes.md",
        batch() | {"notes.md": b"# mine\n"}),
    Row("an overwrite without a model", "batch in.jsonl -m ./no -o out.jsonl --overwrite", 3, "./no",
        batch() | {"out.jsonl": lines({"id": "old", "index": 0, "error": None})}),
    Row("records without their settings", "batch in.jsonl -m demo -o out.jsonl", 2, "out.jsonl",
        batch() | {"out.jsonl": lines({"id": "old", "index": 0, "error": None})}),
    Row("a full device", "batch in.jsonl -m demo -o /dev/full", 1, "No space left", batch()),
]  # fmt: skip

HUB = [
    Row("no network", "run org/name hi", 3, "127.0.0.1:9", env={"HF_ENDPOINT": "http://127.0.0.1:9"}, hub={}),
    Row("offline", "run qwen2.5-0.5b hi --offline", 3, "kvlite is offline", hub={}),
    Row("no repository of this name", "run org/none hi", 3, "the Hub has no model org/none", hub={}),
    Row("no revision of this name", "run org/name@v9 hi", 3, "v9", hub={"org/name": {}}),
    Row("a gated repository", "run org/gated hi", 3, "is gated", hub={"org/gated": {"gated": True}}),
    Row("a token that is wrong", "run org/gated hi", 3, "HF_TOKEN", hub={"org/gated": {"gated": True}},
        env={"HF_TOKEN": "hf_wrong"}),
    Row("a repository of pickles", "run org/pickle hi", 3, "--allow-pickle",
        hub={"org/pickle": {"files": model_files(model__safetensors=None, pytorch_model__bin=b"1")}}),
    Row("a repository of GGUF", "run org/gguf hi", 3, "GGUF", hub={"org/gguf": {"files": {"q4.gguf": b"1"}}}),
    Row("a download cut short", "run org/name hi", 3, "org/name", hub={"org/name": {"stops_after": 100}}),
    Row("a repository of nothing", "run org/name hi", 3, "config.json", hub={"org/name": {"files": {}}}),
]  # fmt: skip

TABLE = [*WORDS, *SETTINGS, *MODELS, *BATCHES, *HUB]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Complete tiny models, one folder each."""
    root = tmp_path_factory.mktemp("models")
    return {name: whole_model(root / name, name) for name in WHOLE}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "here"


@pytest.mark.parametrize("kind", ["a link to nothing", "a FIFO", "a folder"])
@pytest.mark.parametrize("flags", ["", "--config kvlite.toml"])
def test_settings_that_are_no_file_are_one_line(
    kind: str, flags: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = folder / "kvlite.toml"
    {"a link to nothing": lambda: path.symlink_to("none"), "a FIFO": lambda: os.mkfifo(path)}.get(kind, path.mkdir)()
    assert main(["-q", *shlex.split(f"{flags} run demo hi")]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "cannot read kvlite.toml: " in said[0]


@pytest.mark.parametrize("row", TABLE, ids=[row.name.replace(" ", "-") for row in TABLE])
def test_a_mistake_is_one_line_the_right_code_and_no_loss(
    row: Row,
    folder: Path,
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    _prepare(row, folder, models)
    before = _contents(folder)
    monkeypatch.setattr(sys, "stdin", None if row.stdin is None else io.TextIOWrapper(io.BytesIO(row.stdin)))
    stdout = folder.parent / "stdout"
    with ExitStack() as stack:
        monkeypatch.setattr(sys, "stdout", stack.enter_context(stdout.open("w", encoding="utf-8")))
        if row.hub is not None:
            hub = stack.enter_context(private_hub(monkeypatch, folder.parent))
            for name, settings in row.hub.items():
                hub.add(name, **{"files": model_files(), **settings})
        for name, value in row.env.items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        code = main(["-q", *shlex.split(row.command)])
    out, err = stdout.read_text("utf-8"), capfd.readouterr().err

    assert code == row.code, err
    said = [line for line in err.splitlines() if not line.startswith("kvlite: warning: ")]
    assert len(said) == 1 and said[0].startswith("kvlite: "), err
    assert "Traceback" not in err and "run with -v" not in err
    assert row.says in said[0] and len(said[0]) <= LONGEST_LINE, err
    after = _contents(folder)
    records = [json.loads(line) for line in (out if row.output == "-" else after.pop(row.output)).splitlines()]
    assert sorted(r["id"] for r in records if r["error"] is None) == row.answered.split()
    assert sorted(r["id"] for r in records if r["error"] is not None) == sorted(row.failed.split())
    assert after == before


def _prepare(row: Row, folder: Path, models: dict[str, Path]) -> None:
    for name, content in row.files.items():
        if isinstance(content, Model):
            content.write(folder / name, models[content.name])
        elif content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_on_one_output_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in.jsonl").write_bytes(lines(GREET, BYE))
    (folder / "out.jsonl").write_bytes(b"")
    with (folder / "out.jsonl").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert main(["-q", *shlex.split("batch in.jsonl -m demo -o out.jsonl")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "is being written by another run" in err and err.count("\n") == 1
    assert (folder / "out.jsonl").read_bytes() == b""


@pytest.mark.matrix
def test_a_full_disk_costs_the_record_that_did_not_fit_and_no_other(folder: Path) -> None:
    requests = [{"id": str(number), "prompt": "Hello", "max_tokens": 3} for number in range(12)]
    (folder / "in.jsonl").write_bytes(lines(*requests))
    command = shlex.split("-q batch in.jsonl -m demo -o out.jsonl --report none")
    limited = start(*command, cwd=folder, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
    code, out, err = finish(limited)
    assert (code, out) == (1, "")
    assert err.startswith(f"kvlite: cannot write to {folder / 'out.jsonl'}: File too large") and err.count("\n") == 1
    kept = (folder / "out.jsonl").read_bytes()
    assert 0 < kept.count(b"\n") < 12 and kept.endswith(b"\n")
    assert main(command) == 0
    records = (folder / "out.jsonl").read_bytes()
    assert records.startswith(kept)
    assert sorted(json.loads(line)["id"] for line in records.splitlines()) == sorted(r["id"] for r in requests)


def test_an_output_one_may_not_write_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (folder / "in.jsonl").write_bytes(lines(GREET))
    (folder / "out.jsonl").touch(0o400)
    assert main(["-q", *shlex.split("batch in.jsonl -m demo -o out.jsonl")]) == 1
    assert capsys.readouterr() == ("", "kvlite: cannot write to out.jsonl: Permission denied\n")


def test_a_run_that_cannot_be_recorded_is_answered_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "state").write_bytes(b"no folder")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["-q", "run", "demo", "Hello"]) == 0
    out, err = capsys.readouterr()
    assert out.strip()
    assert err.startswith("kvlite: warning: ") and err.count("\n") == 1


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", "a/b", "", ".hidden", "a\nb", "con", "x" * 101])
def test_a_session_cannot_leave_its_folder(
    name: str, own_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert main(["-q", "chat", "demo", "--session", name]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "is no session name" in err and err.count("\n") == 1
    assert not [path for path in own_home.rglob("*") if path.is_file()]
