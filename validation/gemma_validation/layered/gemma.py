"""Gemma 1 and CodeGemma in transformers: its decoder layers, norm, rotary embedding and mask, as its model uses them.

Source: https://github.com/huggingface/transformers/blob/main/src/transformers/models/gemma/modeling_gemma.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer, GemmaRMSNorm, GemmaRotaryEmbedding

from gemma_export.layerwise import LayerStack
from gemma_validation.layered.architecture import Architecture
from gemma_validation.layered.modules import module_stack

__all__ = ["ARCHITECTURE"]


def _stack(config: Mapping[str, Any]) -> LayerStack:
    own = GemmaConfig.from_dict(dict(config), attn_implementation="eager")
    # configs of the first releases say "gelu" and mean the tanh approximation, as Google's own code computes it:
    # https://github.com/google/gemma_pytorch/blob/main/gemma/model.py (GemmaMLP)
    own.hidden_act = "gelu_pytorch_tanh"
    rotary = GemmaRotaryEmbedding(own)
    return module_stack(
        own,
        layer=lambda index: GemmaDecoderLayer(own, index),
        norm=lambda: GemmaRMSNorm(own.hidden_size, eps=own.rms_norm_eps),
        rotary=lambda hidden, positions, kind: rotary(hidden, positions),
    )


ARCHITECTURE = Architecture(stack=_stack, attention_residual="post_attention_layernorm.input")
