"""Models with two sets of rotary factors: one set for all positions, so that keys of both never meet in a row."""

from __future__ import annotations

from transformers import PretrainedConfig


def for_long_texts(config: PretrainedConfig) -> None:
    """Give the config the factors for long texts also where a text is short (`longrope`)."""
    for rope in [config.rope_parameters, *config.rope_parameters.values()]:
        if not isinstance(rope, dict) or "long_factor" not in rope:
            continue
        rope["short_factor"] = rope["long_factor"]
        if "long_mscale" in rope:  # Phi-3.5-MoE: a factor on cosine and sine
            rope["short_mscale"] = rope["long_mscale"]
