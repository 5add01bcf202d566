"""Files whose tensors do not make the model that their header describes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvlite.errors import BrokenModel
from kvlite.gguf.families import parts_of
from kvlite.gguf.folder import require_known
from kvlite.gguf.header import Header, parse_header, read_header
from tests.architectures import SUPPORTED, tiny_model
from tests.gguf.gguf_file import write_model
from tests.models.test_gguf_weights import FAMILIES


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Header:
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    return read_header(write_model(path, tiny_model("llama", SUPPORTED["llama"], vocab_size=300)))


def without(*names: str) -> Callable[[Header], Header]:
    """The header without tensors whose names begin so."""
    return lambda header: replace(
        header, tensors={name: held for name, held in header.tensors.items() if not name.startswith(names)}
    )


def with_shape(name: str, *shape: int) -> Callable[[Header], Header]:
    return lambda header: replace(
        header, tensors=header.tensors | {name: replace(header.tensors["token_embd.weight"], shape=shape)}
    )


def saying(**about: object) -> Callable[[Header], Header]:
    changed = {key.replace("__", "."): value for key, value in about.items()}
    return lambda header: replace(header, metadata=header.metadata | changed)


DAMAGED = {
    "a layer more than it counts": (
        saying(llama__block_count=3),
        "model.gguf holds blk.3.{}, and its header counts 3 layers; download it again",
    ),
    "a layer too few": (without("blk.3."), "model.gguf has no blk.3, so it is not whole; download it again"),
    "a tensor too few": (
        without("blk.1.ffn_down"),
        "model.gguf has no blk.1.ffn_down.weight, so it is not whole; download it again",
    ),
    "no last norm": (
        without("output_norm"),
        "model.gguf has no output_norm.weight, so it is not whole; download it again",
    ),
    "a head of another model": (
        with_shape("output.weight", 300, 32),
        "model.gguf holds output.weight of 300x32 where its header means 300x64; download it again",
    ),
    "other KV heads": (
        saying(llama__attention__head_count_kv=4),
        "model.gguf holds blk.0.attn_k.weight of 32x64 where its header means 64x64; download it again",
    ),
    "a bias in one layer": (
        with_shape("blk.0.ffn_norm.bias", 64),
        "model.gguf has no blk.1.ffn_norm.bias, so it is not whole; download it again",
    ),
    "an embedding of another model": (
        with_shape("token_embd.weight", 300, 32),
        "model.gguf holds token_embd.weight of 300x32 where its header means 300x64; download it again",
    ),
    "a tensor too few in every layer": (
        lambda header: without(*(f"blk.{layer}.ffn_down" for layer in range(4)))(header),
        "model.gguf has no blk.0.ffn_down.weight, so it is not whole; download it again",
    ),
    "another inner width": (
        with_shape("blk.0.ffn_up.weight", 95, 64),
        "model.gguf holds blk.0.ffn_up.weight of 95x64 where its header means 96x64; download it again",
    ),
    "more tokens than embeddings": (
        saying(**{"tokenizer.ggml.tokens": [str(i) for i in range(301)]}),
        "model.gguf has 301 tokens and embeddings for 300: '300' has none; download it again",
    ),
    "no merges": (
        saying(**{"tokenizer.ggml.merges": []}),
        "model.gguf has no merges (tokenizer.ggml.merges), so its tokens would be wrong; get another conversion",
    ),
    "no heads": (
        saying(llama__attention__head_count=0),
        "model.gguf says that llama.attention.head_count is 0; it is damaged",
    ),
    "four billion layers": (
        saying(llama__block_count=2**32),
        "model.gguf has no blk.4, so it is not whole; download it again",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_file_that_is_not_what_its_header_says_is_refused(case: str, header: Header) -> None:
    change, says = DAMAGED[case]
    with pytest.raises(BrokenModel) as caught:
        require_known(change(header))
    wanted, found = says.format("*"), str(caught.value)
    before, star, behind = wanted.partition("*")
    assert found == wanted or (star and found.startswith(before) and found.endswith(behind))


def test_biases_that_a_family_always_has_are_asked_for(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", tiny_model("qwen2", SUPPORTED["qwen2"], vocab_size=300))
    header = read_header(path)
    with pytest.raises(BrokenModel, match=r"has no blk\.0\.attn_q\.bias"):
        require_known(without(*(f"blk.{layer}.attn_q.bias" for layer in range(4)))(header))
    with pytest.raises(BrokenModel, match=r"holds blk\.2\.attn_k\.bias of 1 where its header means 32;"):
        require_known(with_shape("blk.2.attn_k.bias", 1)(header))


def test_tokens_that_were_added_need_no_embedding(header: Header) -> None:
    tokens = [str(i) for i in range(301)]
    added = saying(**{"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * 300 + [3]})
    require_known(added(header))


@pytest.fixture(params=FAMILIES)
def of_family(request: pytest.FixtureRequest, tmp_path: Path) -> Header:
    model = tiny_model(request.param, SUPPORTED[request.param], vocab_size=300)
    return read_header(write_model(tmp_path / "model.gguf", model))


MAY_LACK = {
    "output.weight",  # the head is then the embedding
    "rope_freqs.weight",
    "exp_probs_b.bias",
    "per_layer_model_proj.weight", "per_layer_proj_norm.weight", "per_layer_token_embd.weight",
    "layer_output_scale.weight", "attn_v.weight", "inp_gate.weight", "proj.weight", "post_norm.weight",
}  # fmt: skip
"""Tensors that a file need not have; those behind the first line are Gemma 4's, of which sizes differ."""


def test_a_whole_file_of_every_family_is_taken_and_none_without_a_tensor_in_all_layers(of_family: Header) -> None:
    require_known(of_family)
    kinds = {".".join(parts_of(name)[1:]) for name in of_family.tensors}
    for kind in sorted(kinds - MAY_LACK):
        tensors = {name: held for name, held in of_family.tensors.items() if not name.endswith(f".{kind}")}
        tensors.pop(kind, None)
        with pytest.raises(BrokenModel, match=r"^model\.gguf (has no|holds)"):
            require_known(replace(of_family, tensors=tensors))


def test_a_tensor_of_another_shape_is_refused_in_every_family(of_family: Header) -> None:
    for name, held in of_family.tensors.items():
        wide = replace(held, shape=(*held.shape[:-1], held.shape[-1] + 1))
        if of_family.architecture == "gemma4" and name != "token_embd.weight":
            continue
        with pytest.raises(BrokenModel, match=rf"^model\.gguf holds {name} of "):
            require_known(replace(of_family, tensors=of_family.tensors | {name: wide}))


def test_a_big_endian_file_is_named_so(tmp_path: Path) -> None:
    held = b"GGUF" + (3).to_bytes(4, "big") + bytes(64)
    with pytest.raises(Exception, match="is a big-endian GGUF file; convert it to little-endian"):
        parse_header(tmp_path / "model.gguf", held, len(held))
