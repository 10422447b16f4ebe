"""Gemma 2 and ShieldGemma in transformers: norms behind each branch, soft-capped scores, a window on some layers.

Source: https://github.com/huggingface/transformers/blob/main/src/transformers/models/gemma2/modeling_gemma2.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import (
    Gemma2DecoderLayer,
    Gemma2RMSNorm,
    Gemma2RotaryEmbedding,
    eager_attention_forward,
)

from gemma_export.layerwise import LayerStack
from gemma_validation.layered.architecture import Architecture
from gemma_validation.layered.modules import module_stack
from gemma_validation.layered.pieces import attends_in_pieces

__all__ = ["ARCHITECTURE"]


def _stack(config: Mapping[str, Any]) -> LayerStack:
    # eager: no other attention of transformers soft-caps scores on every machine
    own = Gemma2Config.from_dict(dict(config), attn_implementation="eager")
    rotary, layers = Gemma2RotaryEmbedding(own), attends_in_pieces(own, eager_attention_forward)
    return module_stack(
        own,
        layer=lambda index: Gemma2DecoderLayer(layers, index),
        norm=lambda: Gemma2RMSNorm(own.hidden_size, eps=own.rms_norm_eps),
        rotary=lambda hidden, positions, kind: rotary(hidden, positions),
    )


# what post_attention_layernorm reads is the branch alone
ARCHITECTURE = Architecture(stack=_stack, attention_residual="pre_feedforward_layernorm.input")
