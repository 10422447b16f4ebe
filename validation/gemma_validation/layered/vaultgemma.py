"""VaultGemma in transformers: soft-capped scores and windows as in Gemma 2, no norms behind branches.

Source: https://github.com/huggingface/transformers/blob/main/src/transformers/models/vaultgemma/modeling_vaultgemma.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import VaultGemmaConfig
from transformers.models.vaultgemma.modeling_vaultgemma import (
    VaultGemmaDecoderLayer,
    VaultGemmaRMSNorm,
    VaultGemmaRotaryEmbedding,
    eager_attention_forward,
)

from gemma_export.layerwise import LayerStack
from gemma_validation.layered.architecture import Architecture
from gemma_validation.layered.modules import module_stack
from gemma_validation.layered.pieces import attends_in_pieces

__all__ = ["ARCHITECTURE"]


def _stack(config: Mapping[str, Any]) -> LayerStack:
    # eager: no other attention of transformers soft-caps scores on every machine
    own = VaultGemmaConfig.from_dict(dict(config), attn_implementation="eager")
    rotary, layers = VaultGemmaRotaryEmbedding(own), attends_in_pieces(own, eager_attention_forward)
    return module_stack(
        own,
        layer=lambda index: VaultGemmaDecoderLayer(layers, index),
        norm=lambda: VaultGemmaRMSNorm(own.hidden_size, eps=own.rms_norm_eps),
        rotary=lambda hidden, positions, kind: rotary(hidden, positions),
    )


ARCHITECTURE = Architecture(stack=_stack, attention_residual="pre_feedforward_layernorm.input")
