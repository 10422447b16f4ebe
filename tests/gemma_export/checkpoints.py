"""Small checkpoints on disk, right and wrong, without torch: for tests of the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.families import FAMILIES

CONFIG: dict[str, Any] = {
    "model_type": "gemma",
    "vocab_size": 3072,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "gelu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """bfloat16 tensors of the configuration's names and shapes."""
    family = FAMILIES["gemma"]
    spec, _ = family.parse_config(config)
    generator = np.random.default_rng(0)
    return {
        name: (generator.standard_normal(shape) * 0.1).astype(ml_dtypes.bfloat16)
        for name, shape in family.tensor_shapes(spec).items()
    }


def write(directory: Path, *, weights: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """A checkpoint folder; a change of "absent" leaves the key out of config.json."""
    directory.mkdir(parents=True)
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value != "absent"}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors(CONFIG) if weights is None else weights, directory / "model.safetensors")
    for name in TOKENIZER_FILES:
        shutil.copy(BUILTIN_DIRECTORY / name, directory / name)
    return directory
