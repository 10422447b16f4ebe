"""Gemma 1 and CodeGemma in transformers: its decoder layers, norm, rotary embedding and mask, as its model uses them.

Source: https://github.com/huggingface/transformers/blob/main/src/transformers/models/gemma/modeling_gemma.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GemmaConfig
from transformers.masking_utils import create_causal_mask
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer, GemmaRMSNorm, GemmaRotaryEmbedding

from gemma_export.layerwise import LayerStack
from gemma_validation.layered.architecture import Architecture
from gemma_validation.layered.meta import on_meta

__all__ = ["ARCHITECTURE"]


def _stack(config: Mapping[str, Any]) -> LayerStack:
    own = GemmaConfig.from_dict(dict(config), attn_implementation="eager")
    # configs of the first releases say "gelu" and mean the tanh approximation, as Google's own code computes it:
    # https://github.com/google/gemma_pytorch/blob/main/gemma/model.py (GemmaMLP)
    own.hidden_act = "gelu_pytorch_tanh"
    rotary = GemmaRotaryEmbedding(own)

    def call(layer: torch.nn.Module, index: int, hidden: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(hidden.shape[1])[None]
        mask = create_causal_mask(
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
        layer=lambda index: on_meta(lambda: GemmaDecoderLayer(own, index)),
        call=call,
        final_softcap=0.0,
        norm=lambda: on_meta(lambda: GemmaRMSNorm(own.hidden_size, eps=own.rms_norm_eps)),
        head="model.embed_tokens.weight" if own.tie_word_embeddings else "lm_head.weight",
        layer_weight=lambda index, parameter: f"model.layers.{index}.{parameter}",
        norm_weight=lambda parameter: f"model.norm.{parameter}",
    )


ARCHITECTURE = Architecture(stack=_stack, attention_residual="post_attention_layernorm.input")
