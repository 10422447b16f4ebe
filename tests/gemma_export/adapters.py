"""Small PEFT adapters on disk, right and wrong, without torch and peft: for tests of reading and the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": None,
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "down_proj"],
}
PREFIX = "base_model.model."


def tensors(
    shapes: Mapping[str, tuple[int, ...]], kinds: tuple[str, ...] = ("q_proj", "down_proj"), rank: int = 4
) -> dict[str, np.ndarray]:
    """Factors of every projection of these kinds."""
    generator = np.random.default_rng(5)
    found = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in kinds:
            rows, columns = shape
            found[f"{PREFIX}{module}.lora_A.weight"] = generator.standard_normal((rank, columns)).astype(np.float32)
            found[f"{PREFIX}{module}.lora_B.weight"] = generator.standard_normal((rows, rank)).astype(np.float32)
    return found


def write(directory: Path, weights: Mapping[str, np.ndarray], **changes: Any) -> Path:
    """An adapter folder; a change of "absent" leaves the key out of adapter_config.json."""
    directory.mkdir(parents=True)
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value != "absent"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(dict(weights), directory / "adapter_model.safetensors")
    return directory
