"""VaultGemma in transformers: soft-capped scores and windows as in Gemma 2, no norms behind branches.

Source: https://github.com/huggingface/transformers/blob/main/src/transformers/models/vaultgemma/modeling_vaultgemma.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import VaultGemmaConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.vaultgemma.modeling_vaultgemma import (
    VaultGemmaDecoderLayer,
    VaultGemmaRMSNorm,
    VaultGemmaRotaryEmbedding,
    eager_attention_forward,
)

from gemma_export.layerwise import LayerStack
from gemma_validation.layered.architecture import Architecture
from gemma_validation.layered.meta import on_meta
from gemma_validation.layered.pieces import attends_in_pieces

__all__ = ["ARCHITECTURE"]

_MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}


def _stack(config: Mapping[str, Any]) -> LayerStack:
    # eager: no other attention of transformers soft-caps scores on every machine
    own = VaultGemmaConfig.from_dict(dict(config), attn_implementation="eager")
    rotary, layers = VaultGemmaRotaryEmbedding(own), attends_in_pieces(own, eager_attention_forward)

    def call(layer: torch.nn.Module, index: int, hidden: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(hidden.shape[1])[None]
        mask = _MASKS[own.layer_types[index]](
            config=own, inputs_embeds=hidden, attention_mask=None, past_key_values=None, position_ids=positions
        )
        output: torch.Tensor = layer(
            hidden,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=rotary(hidden, position_ids=positions),
        )
        return output

    return LayerStack(
        num_layers=own.num_hidden_layers,
        hidden_size=own.hidden_size,
        vocab_size=own.vocab_size,
        embedding="model.embed_tokens.weight",
        embedding_scale=own.hidden_size**0.5,
        layer=lambda index: on_meta(lambda: VaultGemmaDecoderLayer(layers, index)),
        call=call,
        final_softcap=own.final_logit_softcapping or 0.0,
        norm=lambda: on_meta(lambda: VaultGemmaRMSNorm(own.hidden_size, eps=own.rms_norm_eps)),
        head="model.embed_tokens.weight" if own.tie_word_embeddings else "lm_head.weight",
        layer_weight=lambda index, parameter: f"model.layers.{index}.{parameter}",
        norm_weight=lambda parameter: f"model.norm.{parameter}",
    )


ARCHITECTURE = Architecture(stack=_stack, attention_residual="pre_feedforward_layernorm.input")
