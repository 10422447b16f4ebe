"""Adapters that PEFT makes and merges itself."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

__all__ = ["ALL", "make_adapter", "merged_by_peft"]

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_adapter(base: torch.nn.Module, directory: Path, arguments: dict[str, Any]) -> Path:
    """An adapter that PEFT saved, every trained number random."""
    torch.manual_seed(1)
    with warnings.catch_warnings(), torch.no_grad():
        # PEFT warns of tied embeddings and of fan_in_fan_out
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(base), LoraConfig(task_type="CAUSAL_LM", **{"r": 4, **arguments}))
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
            elif parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(directory)
    return directory


def merged_by_peft(base: torch.nn.Module, adapter: Path) -> transformers.GemmaForCausalLM:
    """The base model with an adapter in its weights, by PEFT's own merge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(copy.deepcopy(base), adapter).merge_and_unload()
    return merged.eval()
