"""Reference decoders of the families with windows, whose configurations hide no bug: what the parity tests run.

At least one layer that sees everything among several with a window, windows far shorter than the texts, weights large
enough that soft-capping bends, scales that are not head_dim ** -0.5, an odd epsilon and odd rotary bases.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

_BASE: dict[str, Any] = {
    # the built-in tokenizer's
    "vocab_size": 3072,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-3,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 19,
}
_GEMMA2 = {
    **_BASE,
    "model_type": "gemma2",
    "num_hidden_layers": 5,
    "rope_theta": 777.7,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 5.0,
    "sliding_window": 9,
}
_GEMMA3 = {
    **_BASE,
    "model_type": "gemma3_text",
    "num_hidden_layers": 7,
    "rope_theta": 50000.5,
    "rope_local_base_freq": 333.3,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window": 8,
    "sliding_window_pattern": 6,
}
_NESTED = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 20000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 250.0},
}
WINDOWED_CONFIGS: dict[str, dict[str, Any]] = {
    "gemma2": _GEMMA2,
    "gemma2 types": {
        **{key: value for key, value in _GEMMA2.items() if key != "rope_theta"},
        "rope_parameters": {"rope_type": "default", "rope_theta": 4321.0},
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "final_logit_softcapping": None,
        "sliding_window": 16,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
    "gemma3": _GEMMA3,
    "gemma3 nested": {
        **{key: value for key, value in _GEMMA3.items() if not key.startswith(("rope", "sliding_window_pattern"))},
        "rope_parameters": _NESTED,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
        "sliding_window": 11,
        "tie_word_embeddings": False,
    },
}
# Gemma 2's attention without its post-norms, one layer with a window
VAULT_CONFIG: dict[str, Any] = {
    **_GEMMA2,
    "model_type": "vaultgemma",
    "num_hidden_layers": 3,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
}
_CLASSES = {
    "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
    "gemma3_text": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    "vaultgemma": (transformers.VaultGemmaConfig, transformers.VaultGemmaForCausalLM),
}


def windowed_reference(config: dict[str, Any], seed: int = 0) -> Any:
    """The reference implementation in float32, eager, with weights large enough that mistakes show."""
    torch.manual_seed(seed)
    config_class, model_class = _CLASSES[config["model_type"]]
    # as a checkpoint's config.json is read: old rotary keys and periods included
    own = config_class.from_dict(dict(config), attn_implementation="eager")
    model = model_class(own)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.25 if parameter.ndim == 2 else 0.3))
    return model.eval()


def write_windowed_checkpoint(model: Any, directory: Path, config: dict[str, Any], tokenizer_from: Path) -> Path:
    """Saves a checkpoint whose config.json is exactly `config`, with tokenizer files from another checkpoint."""
    model.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        if (tokenizer_from / name).exists():
            shutil.copy(tokenizer_from / name, directory / name)
    return directory
