"""Gemma 3's text decoders in transformers: normalised queries and keys, a rotary embedding for each kind of layer.

Source: https://github.com/huggingface/transformers/blob/main/src/transformers/models/gemma3/modeling_gemma3.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import (
    Gemma3DecoderLayer,
    Gemma3RMSNorm,
    Gemma3RotaryEmbedding,
    eager_attention_forward,
)

from gemma_export.layerwise import LayerStack
from gemma_validation.layered.architecture import Architecture
from gemma_validation.layered.modules import module_stack
from gemma_validation.layered.pieces import attends_in_pieces

__all__ = ["ARCHITECTURE"]


def _stack(config: Mapping[str, Any]) -> LayerStack:
    own = Gemma3TextConfig.from_dict(dict(config), attn_implementation="eager")
    rotary, layers = Gemma3RotaryEmbedding(own), attends_in_pieces(own, eager_attention_forward)
    return module_stack(
        own,
        layer=lambda index: Gemma3DecoderLayer(layers, index),
        norm=lambda: Gemma3RMSNorm(own.hidden_size, eps=own.rms_norm_eps),
        rotary=rotary,
    )


# what post_attention_layernorm reads is the branch alone
ARCHITECTURE = Architecture(stack=_stack, attention_residual="pre_feedforward_layernorm.input")
