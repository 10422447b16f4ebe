"""Names and shapes of the reference implementation's parameters, without a byte of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers

__all__ = ["reference_shapes"]


def reference_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of the model that transformers builds of a config.json; a tied head has none of its own."""
    own = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(own)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
