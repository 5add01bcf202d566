"""Merge a LoRA adapter into the weights of a loaded model, through peft."""

from __future__ import annotations

import warnings
from pathlib import Path

from transformers import PreTrainedModel

from kvlite.errors import BrokenModel, UnsupportedModel
from kvlite.models.refusals import first_line


def merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with the adapter in `adapter` merged into its weights; nothing of peft stays.

    Raises UnsupportedModel where peft is not installed or cannot merge it, BrokenModel where it does not fit the model.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise UnsupportedModel("--adapter needs peft; `pip install 'kvlite-llm[adapter]'`") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of keys that fit nothing, of tied heads that would come apart
            warnings.filterwarnings("ignore", category=FutureWarning)
            held = PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
            whole = held.merge_and_unload(safe_merge=True)
    except (NotImplementedError, AttributeError) as error:
        raise UnsupportedModel(f"the adapter in {adapter} cannot be merged: {first_line(error)}") from error
    except (ValueError, RuntimeError, KeyError, TypeError, OSError, UserWarning) as error:
        raise BrokenModel(f"the adapter in {adapter} does not fit the model: {first_line(error)}") from error
    assert isinstance(whole, PreTrainedModel)
    for parameter in whole.parameters():
        parameter.requires_grad_(False)
    whole.eval()
    return whole
