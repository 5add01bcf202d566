"""From a folder to a model behind the gate: what was asked for is what is there, and damage is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import decoders, pre_tokenizers
from transformers import PreTrainedTokenizerFast, dynamic_module_utils

from kvlite.catalog.names import demo_folder
from kvlite.errors import BrokenModel, DoesNotFit, ModelError, OutOfMemory, UnsupportedModel, UsageError
from kvlite.models import loading
from kvlite.models.device import pick_device
from kvlite.models.fused import FusedAttention, FusedLayer, FusedMLP, FusedRMSNorm
from kvlite.models.loaded import LoadedModel
from kvlite.models.loading import load, load_tokenizer
from kvlite.options import ModelOptions
from tests.architectures import tiny_model
from tests.gguf.gguf_file import byte_level_tokenizer
from tests.model_folder import files_of

CPU = torch.device("cpu")

OWN_CODE = """\
from pathlib import Path
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
Path({marker!r}).write_text("ran")
class Own(LlamaForCausalLM):
    pass
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny llama with the built-in model's tokenizer."""
    tiny_model("llama", {"vocab_size": 1024}).save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder() / name, tmp_path / "model")
    return tmp_path / "model"


def loaded(folder: Path, **options: Any) -> LoadedModel:
    return load(files_of(folder), ModelOptions(**options), CPU)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the object in a JSON file."""
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), "utf-8")


def with_own_code(folder: Path, marker: Path) -> None:
    """Let config.json name classes in a file of the folder, which writes `marker` when it is run."""
    (folder / "own.py").write_text(OWN_CODE.format(marker=str(marker)), "utf-8")
    rewrite(folder / "config.json", lambda config: config.update(auto_map={"AutoModelForCausalLM": "own.Own"}))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("auto", torch.float32),
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
def test_the_dtype_reaches_weights_and_shape(folder: Path, name: str, dtype: torch.dtype) -> None:
    found = loaded(folder, dtype=name)
    assert {parameter.dtype for parameter in found.model.parameters()} == {dtype} == {found.dtype, found.compute_dtype}
    assert f"torch.{found.shape.dtype}" == str(dtype)


def test_auto_is_what_config_json_says(folder: Path) -> None:
    rewrite(folder / "config.json", lambda config: config.update(dtype="bfloat16"))
    assert loaded(folder).dtype == torch.bfloat16


def test_bfloat16_needs_a_gpu_that_has_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    rewrite(folder / "config.json", lambda config: config.update(dtype="bfloat16"))
    turing, files = torch.device("cuda", 0), files_of(folder)
    assert loading.shape_on(files, None, turing).dtype == "float16"
    with pytest.raises(UsageError, match="give --dtype float16"):
        loading.shape_on(files, "bfloat16", turing)


def test_the_cpu_is_always_there() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["tpu7", "cuda:", "cpu:x", ""])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"unknown device '{name}'; give auto, cpu, cuda"):
        pick_device(name)


@pytest.mark.parametrize("name", ["xpu", "meta", "cuda:4096"])
def test_devices_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"device '{name}' is not there"):
        pick_device(name)


def two_gpus(monkeypatch: pytest.MonkeyPatch, built_for: list[str]) -> list[torch.device]:
    """Two GPUs of capability 8.6 under a torch `built_for` some; the list takes the devices made current."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.mark.parametrize("built_for", [["sm_75", "sm_80", "sm_90"], ["compute_75"], ["sm_90", "sm_86"], []])
def test_auto_prefers_cuda_and_makes_it_the_current_device(
    monkeypatch: pytest.MonkeyPatch, built_for: list[str]
) -> None:
    current = two_gpus(monkeypatch, built_for)
    assert pick_device("auto") == torch.device("cuda", 0)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert current == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(UsageError, match=r"has 2 CUDA device\(s\)"):
        pick_device("cuda:2")


@pytest.mark.parametrize("built_for", [["sm_75", "sm_90", "compute_90"], ["sm_120", "compute_120"], ["sm_87"]])
def test_a_gpu_that_torch_has_no_code_for_is_passed_over(monkeypatch: pytest.MonkeyPatch, built_for: list[str]) -> None:
    current = two_gpus(monkeypatch, built_for)
    told: list[str] = []
    assert pick_device("auto", told.append) == torch.device("cpu")
    why = "A card has compute capability 8.6, which this torch is not built for"
    assert told == [f"{why}; running on the CPU"]
    with pytest.raises(UsageError, match=f"{why}; give --device cpu"):
        pick_device("cuda")
    assert current == []


def test_the_model_is_ready_to_answer(folder: Path) -> None:
    found = loaded(folder)
    assert not found.model.training and found.quant == "none"
    assert found.rotations is not None and len(found.rotations) == 4
    assert found.weight_bytes == 4 * found.model.num_parameters() + sum(b.nbytes for b in found.model.buffers())


def test_lacking_tensors_are_named_and_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    for name in ("model.layers.2.mlp.up_proj.weight", "model.norm.weight"):
        del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BrokenModel, match=r"lack model\.layers\.2\.mlp\.up_proj\.weight and 1 more"):
        loaded(folder)


def test_tensors_of_another_shape_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][:60].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BrokenModel, match=r"model\.norm\.weight, \[60\] for \[64\]"):
        loaded(folder)


def test_tied_heads_may_be_left_out(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    rewrite(folder / "config.json", lambda config: config.update(tie_word_embeddings=True))
    assert loaded(folder).model.num_parameters() > 0


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    tiny_model("llama", {"vocab_size": 1000}).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder() / name, tmp_path)
    with pytest.raises(BrokenModel, match="ids up to 1023 but the model only 1000"):
        loaded(tmp_path)


def test_a_template_in_a_file_of_its_own_is_read(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (copy / name).unlink(missing_ok=True)
    assert load_tokenizer(copy).chat_template is None
    (copy / "chat_template.json").write_text('{"chat_template": "{{ messages[0].content }}"}', "utf-8")
    assert load_tokenizer(copy).chat_template == "{{ messages[0].content }}"


def test_a_tokenizer_that_cuts_text_into_bytes_decodes_bytes(tmp_path: Path) -> None:
    backend = byte_level_tokenizer()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path)
    found = load_tokenizer(tmp_path)
    assert found.decode(found("the cat, naïve 日本").input_ids) == "the cat, naïve 日本"


@pytest.mark.parametrize("named", ["LlamaTokenizerFast", "Qwen2Tokenizer", "GPT2Tokenizer"])
def test_a_tokenizer_cuts_as_its_file_says_whatever_class_it_names(tmp_path: Path, named: str) -> None:
    backend = byte_level_tokenizer()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path)
    rewrite(tmp_path / "tokenizer_config.json", lambda config: config.update(tokenizer_class=named))
    found, text = load_tokenizer(tmp_path), " the  cat's 2026 hats,\n naïve 日本"
    assert found(text, add_special_tokens=False).input_ids == backend.encode(text, add_special_tokens=False).ids
    assert found.decode(found(text).input_ids, skip_special_tokens=True) == text
    assert found.eos_token == "</s>"


def test_a_model_larger_than_its_tokenizer_is_fine(tmp_path: Path) -> None:
    tiny_model("llama", {"vocab_size": 1088}).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder() / name, tmp_path)
    assert loaded(tmp_path).shape.vocab == 1088


def test_a_family_that_cannot_be_bounded_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="bloom"):
        load(files_of(tmp_path / "nowhere", {"model_type": "bloom"}), ModelOptions(), CPU)


def test_code_in_the_folder_is_not_run_unless_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    with_own_code(folder, marker)
    assert type(loaded(folder).model).__name__ == "LlamaForCausalLM"  # transformers knows this family without it
    assert not marker.exists()
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    assert type(loaded(folder, trust_remote_code=True).model).__name__ == "Own"
    assert marker.read_text() == "ran"


def test_a_model_that_is_nothing_without_its_code_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    with_own_code(folder, marker)
    known = files_of(folder)
    rewrite(
        folder / "config.json",
        lambda config: config.update(model_type="own", auto_map={**config["auto_map"], "AutoConfig": "own.Config"}),
    )
    with pytest.raises(ModelError, match="runs code of its own; read it, then give --trust-remote-code") as raised:
        load(known, ModelOptions(), CPU)
    assert type(raised.value) is ModelError and not marker.exists()


def test_a_tokenizer_that_is_nothing_without_its_code_says_so(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (folder / "own.py").write_text(OWN_CODE.format(marker=str(marker)), "utf-8")
    rewrite(
        folder / "tokenizer_config.json",
        lambda config: config.update(
            tokenizer_class="OwnTokenizer", auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]}
        ),
    )
    with pytest.raises(ModelError, match="runs code of its own; read it, then give --trust-remote-code"):
        load_tokenizer(folder)
    assert not marker.exists()


def test_pickles_are_not_read_unless_allowed(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BrokenModel, match="has no safetensors weights; give --allow-pickle"):
        loaded(folder)
    assert loaded(folder, allow_pickle=True).model.num_parameters() > 0


def test_a_pickle_that_runs_code_does_not_even_where_allowed(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"model.norm.weight": Trap(marker)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BrokenModel, match="cannot be loaded"):
        loaded(folder, allow_pickle=True)
    assert not marker.exists()


class Trap:
    """Unpickled, it touches a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._marker,)


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (torch.OutOfMemoryError("no"), OutOfMemory),
        (RuntimeError("CUDA error: out of memory"), OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemory),
        (MemoryError(), DoesNotFit),
    ],
)
def test_weights_that_do_not_fit_say_what_to_try(
    folder: Path, raised: Exception, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise raised

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(error, match="smaller model"):
        loaded(folder)


def test_the_kernels_reach_the_fused_modules(folder: Path) -> None:
    pytest.importorskip("triton", reason="the Triton kernels need triton, which is not installed")
    for kernels, name in (("auto", "torch"), ("torch", "torch"), ("triton", "triton")):
        modules = loaded(folder, kernels=kernels).model.modules()
        fused = [
            module for module in modules if isinstance(module, (FusedRMSNorm, FusedMLP, FusedAttention, FusedLayer))
        ]
        assert {module.ops.name for module in fused} == {name}


def test_kernels_that_cannot_run_are_refused_before_the_weights_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="--kernels triton: Triton kernels need a CUDA device, and this is cpu; give"):
        loaded(folder, kernels="triton")
