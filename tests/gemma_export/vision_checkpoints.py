"""Vision-language checkpoints around a tiny text decoder: configuration, model, files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from gemma_export.checkpoint import BUILTIN_DIRECTORY

__all__ = ["WEIGHTS", "vision_config", "vision_reference", "write_files"]

WEIGHTS = "model.safetensors"
_VISION = {
    "hidden_size": 16,
    "image_size": 28,
    "intermediate_size": 16,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 14,
    "vision_use_head": False,
}
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def vision_config(section: Mapping[str, Any]) -> dict[str, Any]:
    """config.json around the text decoder's own keys."""
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 40,
        "eoi_token_index": 41,
        "eos_token_id": [1, 107],
        "image_token_index": 42,
        "mm_tokens_per_image": 4,
        "model_type": "gemma3",
        "text_config": dict(section),
        "torch_dtype": "float32",
        "vision_config": _VISION,
    }


def vision_reference(section: Mapping[str, Any]) -> Any:
    """The reference implementation in float32, eager, with weights large enough that mistakes show."""
    torch.manual_seed(4)
    own = transformers.Gemma3Config.from_dict(vision_config(section), attn_implementation="eager")
    model = transformers.Gemma3ForConditionalGeneration(own)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.25 if parameter.ndim == 2 else 0.3))
    return model.eval()


def write_files(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
    """A checkpoint of exactly these, with the built-in tokenizer."""
    directory.mkdir()
    save_file(dict(tensors), directory / WEIGHTS, metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    for name in _TOKENIZER:
        shutil.copy(BUILTIN_DIRECTORY / name, directory / name)
    return directory
