"""Writes kvlite/catalog/shapes.json: the config.json of every alias, in short, and what its weights take.

Run `python -m tests.catalog.shapes_table`; a test holds the file and this table together. Configs are those of the
repositories at DATE; the parameters are counted on transformers' own classes, without memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

DATE = "2026-11-29"
FILE = Path(__file__).parents[2] / "kvlite" / "catalog" / "shapes.json"
_PUBLISHED = Path(__file__).parents[1] / "data" / "configs"
_NAMES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
_QWEN2 = {"model_type": "qwen2", "use_sliding_window": False}
_QWEN3 = {"model_type": "qwen3", "head_dim": 128, "use_sliding_window": False}
_PHI3 = {"model_type": "phi3", "sliding_window": None}
_LONG = {
    "rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096, "sliding_window": 262144,
}  # fmt: skip
_GEMMA3 = {"model_type": "gemma3_text", "head_dim": 256}


def _sizes(*values: Any, **others: Any) -> dict[str, Any]:
    """The fields _NAMES with these values, and others over them."""
    return {"model_type": "llama", **dict(zip(_NAMES, values, strict=True)), **others}


def _published(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((_PUBLISHED / f"{name}.json").read_text("utf-8"))
    return config


def _gemma3(*values: Any, window: int) -> dict[str, Any]:
    return _sizes(*values, **_GEMMA3, sliding_window=window)


def _qwen35(*values: Any, key_heads: int = 16, value_heads: int, **others: Any) -> dict[str, Any]:
    linear = {"linear_num_key_heads": key_heads, "linear_num_value_heads": value_heads, "head_dim": 256}
    return _sizes(*values, **{"model_type": "qwen3_5_text", **linear, **others})


def _ministral3(*values: Any) -> dict[str, Any]:
    rope = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16384}
    text = _sizes(*values, model_type="ministral3", head_dim=128, rope_parameters=rope)
    return {"model_type": "mistral3", "text_config": text, "quantization_config": {"quant_method": "fp8"}}


def _gemma4(*values: Any, pattern: int, **others: Any) -> dict[str, Any]:
    layers = values[2]
    kinds = ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)]
    text = _sizes(*values, model_type="gemma4_text", head_dim=256, global_head_dim=512, layer_types=kinds, **others)
    return {"model_type": "gemma4", "text_config": text, "vision_config": {}}


_MOE35 = {
    "model_type": "qwen3_5_moe_text", "num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}  # fmt: skip
_QWEN27 = _qwen35(5120, 17408, 64, 24, 4, 248320, 262144, False, value_heads=48)
_QWEN35 = _qwen35(2048, 512, 40, 16, 2, 248320, 262144, False, value_heads=32, **_MOE35)

_QWEN3_MOE = {
    "model_type": "qwen3_moe", "head_dim": 128, "use_sliding_window": False, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 768,
}  # fmt: skip
_LLAMA3_8B = _sizes(4096, 14336, 32, 32, 8, 128256, 131072, False, rope_scaling=_LLAMA3)
_LLAMA3_70B = _sizes(8192, 28672, 80, 64, 8, 128256, 131072, False, rope_scaling=_LLAMA3)
_QWEN2_7B = _sizes(3584, 18944, 28, 28, 4, 152064, 32768, False, **_QWEN2)
_QWEN2_14B = _sizes(5120, 13824, 48, 40, 8, 152064, 32768, False, **_QWEN2)
_QWEN2_32B = _sizes(5120, 27648, 64, 40, 8, 152064, 32768, False, **_QWEN2)
_LONGER = {"max_position_embeddings": 131072}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama-7b": _sizes(4096, 11008, 32, 32, 32, 32000, 4096, False, dtype="float16"),
    "llama-13b": _sizes(5120, 13824, 40, 40, 40, 32000, 4096, False, dtype="float16"),
    "llama-3-8b": _sizes(4096, 14336, 32, 32, 8, 128256, 8192, False),
    "llama-3.1-8b": _LLAMA3_8B,
    "llama-3.1-70b": _LLAMA3_70B,
    "llama-3.2-1b": _sizes(2048, 8192, 16, 32, 8, 128256, 131072, True, rope_scaling=_LLAMA3),
    "llama-3.2-3b": _sizes(3072, 8192, 28, 24, 8, 128256, 131072, True, rope_scaling=_LLAMA3),
    "llama-3.3-70b": _LLAMA3_70B,
    "mistral-7b": _sizes(4096, 14336, 32, 32, 8, 32768, 32768, False, model_type="mistral", sliding_window=None),
    "mixtral-8x7b": _sizes(
        4096, 14336, 32, 32, 8, 32000, 32768, False, model_type="mixtral", sliding_window=None, num_local_experts=8
    ),
    "mistral-small": {
        "model_type": "mistral3",
        "text_config": _sizes(
            5120, 32768, 40, 32, 8, 131072, 131072, False, model_type="mistral", head_dim=128, sliding_window=None
        ),
    },
    "ministral-3-3b": _ministral3(3072, 9216, 26, 32, 8, 131072, 262144, True),
    "ministral-3-8b": _ministral3(4096, 14336, 34, 32, 8, 131072, 262144, False),
    "ministral-3-14b": _ministral3(5120, 16384, 40, 32, 8, 131072, 262144, False),
    "qwen2.5-0.5b": _sizes(896, 4864, 24, 14, 2, 151936, 32768, True, **_QWEN2),
    "qwen2.5-1.5b": _sizes(1536, 8960, 28, 12, 2, 151936, 32768, True, **_QWEN2),
    "qwen2.5-3b": _sizes(2048, 11008, 36, 16, 2, 151936, 32768, True, **_QWEN2),
    "qwen2.5-7b": _QWEN2_7B,
    "qwen2.5-14b": _QWEN2_14B,
    "qwen2.5-32b": _QWEN2_32B,
    "qwen2.5-72b": _sizes(8192, 29568, 80, 64, 8, 152064, 32768, False, **_QWEN2),
    "qwen2.5-coder-1.5b": _sizes(1536, 8960, 28, 12, 2, 151936, 32768, True, **_QWEN2),
    "qwen2.5-coder-7b": _QWEN2_7B,
    "qwen2.5-coder-14b": _QWEN2_14B,
    "qwen2.5-coder-32b": _QWEN2_32B,
    "qwq-32b": _QWEN2_32B | {"max_position_embeddings": 40960},
    "qwen3-0.6b": _sizes(1024, 3072, 28, 16, 8, 151936, 40960, True, **_QWEN3),
    "qwen3-1.7b": _sizes(2048, 6144, 28, 16, 8, 151936, 40960, True, **_QWEN3),
    "qwen3-4b": _sizes(2560, 9728, 36, 32, 8, 151936, 40960, True, **_QWEN3),
    "qwen3-8b": _sizes(4096, 12288, 36, 32, 8, 151936, 40960, False, **_QWEN3),
    "qwen3-14b": _sizes(5120, 17408, 40, 40, 8, 151936, 40960, False, **_QWEN3),
    "qwen3-32b": _sizes(5120, 25600, 64, 64, 8, 151936, 40960, False, **_QWEN3),
    "qwen3-30b-a3b": _sizes(2048, 6144, 48, 32, 4, 151936, 40960, False, **_QWEN3_MOE),
    "qwen3-coder-30b-a3b": _sizes(2048, 6144, 48, 32, 4, 151936, 262144, False, **_QWEN3_MOE),
    "qwen3.5-0.8b": _qwen35(1024, 3584, 24, 8, 2, 248320, 262144, True, value_heads=16),
    "qwen3.5-2b": _qwen35(2048, 6144, 24, 8, 2, 248320, 262144, True, value_heads=16),
    "qwen3.5-4b": _qwen35(2560, 9216, 32, 16, 4, 248320, 262144, True, value_heads=32),
    "qwen3.5-9b": _qwen35(4096, 12288, 32, 16, 4, 248320, 262144, False, value_heads=32),
    "qwen3.5-27b": _QWEN27,
    "qwen3.5-35b-a3b": _QWEN35,
    "qwen3.6-27b": _QWEN27,
    "qwen3.8-27b": _QWEN27,
    "qwen3.6-35b-a3b": _QWEN35,
    "tinyllama": _sizes(2048, 5632, 22, 32, 4, 32000, 2048, False),
    "smollm2-135m": _sizes(576, 1536, 30, 9, 3, 49152, 8192, True),
    "smollm2-360m": _sizes(960, 2560, 32, 15, 5, 49152, 8192, True),
    "smollm2-1.7b": _sizes(2048, 8192, 24, 32, 32, 49152, 8192, True),
    "smollm3-3b": _sizes(2048, 11008, 36, 16, 4, 128256, 65536, True, model_type="smollm3", use_sliding_window=False),
    "phi-3.5-mini": _sizes(3072, 8192, 32, 32, 32, 32064, 131072, False, **(_PHI3 | _LONG)),
    "phi-4-mini": _sizes(3072, 8192, 32, 24, 8, 200064, 131072, True, **(_PHI3 | _LONG)),
    "phi-4": _sizes(5120, 17920, 40, 40, 10, 100352, 16384, False, **_PHI3),
    "gemma-2-2b": _published("gemma-2-2b"),
    "gemma-2-9b": _sizes(3584, 14336, 42, 16, 8, 256000, 8192, True, model_type="gemma2", head_dim=256),
    "gemma-2-27b": _sizes(4608, 36864, 46, 32, 16, 256000, 8192, True, model_type="gemma2", head_dim=128),
    "gemma-3-270m": _gemma3(640, 2048, 18, 4, 1, 262144, 32768, True, window=512),
    "gemma-3-1b": _gemma3(1152, 6912, 26, 4, 1, 262144, 32768, True, window=512),
    "gemma-3-4b": _gemma3(2560, 10240, 34, 8, 4, 262208, 131072, True, window=1024),
    "gemma-3-12b": _gemma3(3840, 15360, 48, 16, 8, 262208, 131072, True, window=1024),
    "gemma-3-27b": {**_gemma3(5376, 21504, 62, 32, 16, 262208, 131072, True, window=1024), "head_dim": 128},
    "gemma-4-e2b": _gemma4(
        1536,
        6144,
        35,
        8,
        1,
        262144,
        131072,
        True,
        pattern=5,
        num_kv_shared_layers=20,
        use_double_wide_mlp=True,
        sliding_window=512,
    ),
    "gemma-4-e4b": _gemma4(
        2560, 10240, 42, 8, 2, 262144, 131072, True, pattern=6, num_kv_shared_layers=18, sliding_window=512
    ),
    "gemma-4-26b-a4b": _gemma4(
        2816,
        2112,
        30,
        16,
        8,
        262144,
        262144,
        True,
        pattern=6,
        attention_k_eq_v=True,
        num_global_key_value_heads=2,
        sliding_window=1024,
        hidden_size_per_layer_input=0,
        enable_moe_block=True,
        num_experts=128,
        top_k_experts=8,
        moe_intermediate_size=704,
    ),
    "gemma-4-31b": _gemma4(
        5376,
        21504,
        60,
        32,
        16,
        262144,
        262144,
        True,
        pattern=6,
        attention_k_eq_v=True,
        num_global_key_value_heads=4,
        sliding_window=1024,
        hidden_size_per_layer_input=0,
    ),
    "gpt-oss-20b": _published("gpt-oss-20b"),
    "gpt-oss-120b": {
        **_published("gpt-oss-20b"),
        "num_hidden_layers": 36,
        "num_local_experts": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 18,
    },
    "lfm2.5-1.2b": _published("lfm2-1.2b"),
    "olmo-3-7b": _sizes(4096, 11008, 32, 32, 32, 100278, 65536, False, model_type="olmo3", sliding_window=4096),
    "deepseek-r1-1.5b": _sizes(1536, 8960, 28, 12, 2, 151936, 131072, False, **_QWEN2),
    "deepseek-r1-7b": _QWEN2_7B | _LONGER,
    "deepseek-r1-8b": _LLAMA3_8B,
    "deepseek-r1-14b": _QWEN2_14B | _LONGER,
    "deepseek-r1-32b": _QWEN2_32B | _LONGER,
    "deepseek-r1-70b": _LLAMA3_70B,
}


def weights(config: dict[str, Any]) -> dict[str, int]:
    """Bytes of a model's weights by the dtype they are stored in, counted on its class."""
    text = dict(config.get("text_config", config))
    text.pop("rope_scaling", None)  # of no weight, and longrope's factors are long lists
    model_type = text.pop("model_type")
    method = config.get("quantization_config", {}).get("quant_method")
    for name in ("dtype", "torch_dtype", "quantization_config", "architectures", "transformers_version", "auto_map"):
        text.pop(name, None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **text))
    counted = {id(parameter): (name, parameter) for name, parameter in model.named_parameters()}
    plain = packed = 0
    for name, parameter in counted.values():
        is_expert = "experts" in name and parameter.dim() == 3
        is_linear = parameter.dim() == 2 and "embed" not in name and "lm_head" not in name
        if (method == "mxfp4" and is_expert) or (method == "fp8" and is_linear):
            packed += parameter.numel()
        else:
            plain += parameter.numel()
    found = {"BF16": 2 * plain}
    if method == "mxfp4":
        found |= {"U8": packed * 17 // 32}  # 4 bits each, and a byte for every 32
    elif packed:
        found |= {"F8_E4M3": packed}
    return found | {"parameters": plain + packed}


def table() -> dict[str, Any]:
    """The whole file."""
    models = {}
    for alias, config in CONFIGS.items():
        found = weights(config)
        models[alias] = {"config": config, "parameters": found.pop("parameters"), "bytes": found}
    return {"date": DATE, "models": models}


if __name__ == "__main__":
    made = table()
    lines = (f"  {json.dumps(alias)}: {json.dumps(model)}" for alias, model in made["models"].items())
    text = ",\n".join(lines)
    FILE.write_text(f'{{"date": "{DATE}", "models": {{\n{text}\n}}}}\n', encoding="utf-8")
