"""Files of a model too small to run and complete enough to be catalogued."""

import json
import struct
from pathlib import Path
from typing import Any

from kvlite.catalog.model_files import ModelFiles
from kvlite.catalog.names import ModelRef

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "dtype": "bfloat16",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 100,
}
KV_BYTES_PER_TOKEN = 3 * 2 * (16 + 16) * 2  # layers, KV heads, K and V, bfloat16
CARD = "---\nlicense: apache-2.0\n---\n\n# Tiny\n\nA model for tests,\nwith two lines.\n\nMore.\n"


def safetensors(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """A safetensors file of zeros: dtype, shape and bytes by tensor name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


WEIGHTS = safetensors({"a": ("BF16", [10, 20], 400), "b": ("F32", [3], 12)})  # 203 parameters, 412 bytes


def model_files(**changed: bytes | None) -> dict[str, bytes]:
    """Bytes by file name; `changed` replaces files by name with `__` for a dot, None leaves one out."""
    files: dict[str, bytes | None] = {
        "README.md": CARD.encode(),
        "config.json": json.dumps(CONFIG).encode(),
        "generation_config.json": b'{"temperature": 0.5}',
        "model.safetensors": WEIGHTS,
        "tokenizer.json": b"{}",
    }
    files |= {name.replace("__", "."): content for name, content in changed.items()}
    return {name: content for name, content in files.items() if content is not None}


def sharded_files() -> dict[str, bytes]:
    """As `model_files`, with the weights in two shards and an index."""
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    return model_files(model__safetensors=None) | {
        shards["a"]: safetensors({"a": ("BF16", [10, 20], 400)}),
        shards["b"]: safetensors({"b": ("F32", [3], 12)}),
        "model.safetensors.index.json": json.dumps({"weight_map": shards}).encode(),
    }


def files_of(folder: Path, config: dict[str, Any] | None = None) -> ModelFiles:
    """The folder as it is, complete or not, under its own config.json or `config`."""
    read = config or json.loads((folder / "config.json").read_text("utf-8"))
    return ModelFiles(ref=ModelRef(path=folder), folder=folder, config=read, generation={})


def write_model(folder: Path, files: dict[str, bytes]) -> Path:
    """Write the files into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
