"""Headers of GGUF files: whole, split, damaged, and of types nobody wrote yet."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.errors import BrokenModel, KvliteError, UnsupportedModel
from kvlite.gguf.families import config_of, weight_names
from kvlite.gguf.folder import generation_of, require_known
from kvlite.gguf.header import Header, is_gguf, one_line, parse_header, read_header
from kvlite.gguf.tokenizer import build_tokenizer, tokenizer_config
from tests.architectures import tiny_model
from tests.gguf.gguf_file import (
    byte_level_tokenizer,
    converted,
    model_metadata,
    tokenizer_metadata,
    write_gguf,
    write_model,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gguf") / "model.gguf", tiny_model("qwen3", {}, vocab_size=300), "Q8_0")


def test_metadata_and_tensors_are_those_of_the_gguf_library(whole: Path) -> None:
    import gguf

    header, theirs = read_header(whole), gguf.GGUFReader(whole)
    assert is_gguf(whole) and header.architecture == "qwen3"
    wanted = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    got = {name: list(value) if isinstance(value, tuple) else value for name, value in header.metadata.items()}
    assert got == wanted
    for tensor in theirs.tensors:
        ours = header.tensors[tensor.name]
        assert (ours.start, ours.num_bytes, ours.type) == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type.name)
        assert ours.shape == tuple(reversed(tensor.shape.tolist()))
    assert sum(header.by_type.values()) == sum(int(tensor.n_bytes) for tensor in theirs.tensors)


def test_parts_are_read_as_one_file_and_a_missing_one_is_named(tmp_path: Path) -> None:
    model = tiny_model("qwen3", {})
    about, tensors = model_metadata(model) | tokenizer_metadata(byte_level_tokenizer(128)), converted(model)
    half = len(tensors) // 2
    parts = [dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:])]
    names = [f"tiny-{number:05d}-of-00002.gguf" for number in (1, 2)]
    for number, (name, part) in enumerate(zip(names, parts, strict=True)):
        metadata = about if number == 0 else {}
        write_gguf(tmp_path / name, {**metadata, "split.count": 2, "split.no": number}, part, "qwen3")
    header = read_header(tmp_path / names[1])
    assert set(header.tensors) == set(tensors) and header.tensors["output_norm.weight"].file.name in names
    (tmp_path / names[1]).unlink()
    with pytest.raises(BrokenModel, match=f"one of 2 parts and {names[1]} is missing"):
        read_header(tmp_path / names[0])


@given(keep=st.floats(0, 0.9999))
def test_a_file_cut_off_anywhere_is_one_clear_line(whole: Path, keep: float) -> None:
    content = whole.read_bytes()
    cut = whole.with_name("cut.gguf")
    cut.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(BrokenModel, match=r"download it again|cannot be read") as caught:
        read_header(cut)
    assert "\n" not in str(caught.value)


STRANGE = (None, -1, 0, 10**9, 0.5, "", "text", "a b c", [], [1], ["a", "b c"], {"a": 1}, (), True)


def test_metadata_of_any_type_is_read_or_refused_in_one_line(whole: Path) -> None:
    good, header = read_header(whole).metadata, read_header(whole)
    for key in good:
        for value in STRANGE:
            strange = Header(whole, good | {key: value}, header.tensors)
            try:
                require_known(strange)
                with one_line(whole):
                    generation_of(strange), tokenizer_config(strange)
                build_tokenizer(strange)
            except KvliteError as error:
                assert "\n" not in str(error), (key, value)


@given(at=st.integers(4, 6000), byte=st.integers(0, 255))
def test_a_damaged_header_is_read_or_refused_in_one_line(whole: Path, at: int, byte: int) -> None:
    content = bytearray(whole.read_bytes())
    content[at] = byte
    try:
        parse_header(whole, bytes(content), len(content))
    except KvliteError as error:
        assert "\n" not in str(error)


def test_what_is_no_gguf_or_of_another_version_is_refused(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04 a zip")
    assert not is_gguf(other)
    with pytest.raises(BrokenModel, match="is not a GGUF file"):
        read_header(other)
    other.write_bytes(b"GGUF" + struct.pack("<I", 1) + whole.read_bytes()[8:])
    with pytest.raises(UnsupportedModel, match="GGUF version 1; kvlite reads 2 and 3"):
        read_header(other)


def test_families_and_tensors_that_are_not_read_are_named(tmp_path: Path) -> None:
    model = tiny_model("qwen3", {})
    about, tensors = model_metadata(model), converted(model)
    strange = write_gguf(tmp_path / "strange.gguf", about, tensors, "some-new")
    with pytest.raises(UnsupportedModel, match="of the family 'some-new', which kvlite does not read"):
        config_of(read_header(strange))
    more = write_gguf(
        tmp_path / "more.gguf", about, tensors | {"blk.0.extra.weight": tensors["output_norm.weight"]}, "qwen3"
    )
    with pytest.raises(UnsupportedModel, match=r"holds blk\.0\.extra\.weight, which kvlite does not know of qwen3"):
        weight_names(read_header(more))
