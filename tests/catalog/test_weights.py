"""Safetensors headers: sizes that are right, and files that are not what they say."""

import json
import struct
from pathlib import Path

import pytest

from kvlite.catalog.weights import read_weights
from kvlite.errors import BrokenModel
from tests.model_folder import WEIGHTS, model_files, safetensors, sharded_files, write_model


def test_sizes_of_one_file(tmp_path: Path) -> None:
    weights = read_weights(write_model(tmp_path, model_files()))
    assert weights is not None
    assert (weights.num_bytes, weights.parameters) == (412, 203)
    assert weights.by_dtype == {"BF16": 400, "F32": 12}


def test_sizes_of_shards(tmp_path: Path) -> None:
    weights = read_weights(write_model(tmp_path, sharded_files()))
    assert weights is not None and (weights.num_bytes, weights.parameters) == (412, 203)


def test_folder_without_weights(tmp_path: Path) -> None:
    assert read_weights(tmp_path) is None


def _with_header(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "truncated or no safetensors"),
        (b"1234", "truncated or no safetensors"),
        (struct.pack("<Q", 2**62) + b"{}", "truncated or no safetensors"),
        (WEIGHTS[:-1], "truncated: 411 of 412 bytes"),
        (WEIGHTS[:40], "truncated or no safetensors"),
        (struct.pack("<Q", 4) + b"\xff\xfe{}", "damaged safetensors header"),
        (_with_header([1]), "damaged safetensors header"),
        (_with_header({"a": 1}), "describes tensor 'a' wrongly"),
        (_with_header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}), "describes tensor 'a' wrongly"),
        (_with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}), "describes tensor 'a' wrongly"),
        (
            _with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, True]}}),
            "describes tensor 'a' wrongly",
        ),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    write_model(tmp_path, {"model.safetensors": content})
    with pytest.raises(BrokenModel, match=rf"model\.safetensors .*{said}.*get the file again"):
        read_weights(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    files = sharded_files()
    del files["model-00002-of-00002.safetensors"]
    with pytest.raises(BrokenModel, match=r"model-00002-of-00002\.safetensors is missing"):
        read_weights(write_model(tmp_path, files))


def test_shard_without_its_tensor_is_named(tmp_path: Path) -> None:
    files = sharded_files() | {"model-00002-of-00002.safetensors": safetensors({"c": ("F32", [3], 12)})}
    with pytest.raises(BrokenModel, match=r"model-00002-of-00002\.safetensors lacks tensor 'b'"):
        read_weights(write_model(tmp_path, files))


@pytest.mark.parametrize("index", [b"", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": []}', b"\xff"])
def test_damaged_index_is_named(tmp_path: Path, index: bytes) -> None:
    write_model(tmp_path, {"model.safetensors.index.json": index})
    with pytest.raises(BrokenModel, match=r"index\.json is not an index of shards"):
        read_weights(tmp_path)


def test_index_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    write_model(tmp_path, {"model.safetensors.index.json": b'{"weight_map": {"a": "../secret"}}'})
    with pytest.raises(BrokenModel, match="no file name"):
        read_weights(tmp_path)
