"""transformers' modules as a stack of layers: what all families have alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from gemma_export.layerwise import LayerStack
from gemma_validation.layered.caches import LayerCache
from gemma_validation.layered.products import widen_linears

__all__ = ["module_stack"]

_WINDOWED = "sliding_attention"


def module_stack(
    config: Any,
    *,
    layer: Callable[[int], torch.nn.Module],
    norm: Callable[[], torch.nn.Module],
    rotary: Callable[[torch.Tensor, torch.Tensor, str], Any],
) -> LayerStack:
    """A stack of transformers' own modules, whose `call` takes a cache too.

    Args:
        config: of transformers; masks are made by it.
        layer: makes decoder layer i.
        norm: makes the norm before the head.
        rotary: (hidden states, positions [1, S], kind of the layer) -> (cosine, sine).
    """
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers

    def call(
        module: torch.nn.Module, index: int, hidden: torch.Tensor, cache: LayerCache | None = None
    ) -> torch.Tensor:
        past = 0 if cache is None else cache.length
        kind, end = kinds[index], past + hidden.shape[1]
        positions = torch.arange(past, end)[None]
        make_mask = create_sliding_window_causal_mask if kind == _WINDOWED else create_causal_mask
        # of the whole sequence, whose last rows are the step's; only its shape is looked at
        whole = hidden if past == 0 else hidden.new_zeros((len(hidden), end, 1))
        mask = make_mask(
            config=config,
            inputs_embeds=whole,
            attention_mask=None,
            past_key_values=None,
            position_ids=torch.arange(end)[None],
        )
        output: torch.Tensor = module(
            hidden,
            attention_mask=mask if past == 0 else mask[:, :, past:],
            position_ids=positions,
            past_key_values=cache,
            position_embeddings=rotary(hidden, positions, kind),
        )
        return output

    return LayerStack(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        embedding="model.embed_tokens.weight",
        embedding_scale=config.hidden_size**0.5,
        layer=lambda index: widen_linears(_on_meta(lambda: layer(index))),
        call=call,
        final_softcap=getattr(config, "final_logit_softcapping", None) or 0.0,
        norm=lambda: _on_meta(norm),
        head="model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight",
        layer_weight=lambda index, parameter: f"model.layers.{index}.{parameter}",
        norm_weight=lambda parameter: f"model.norm.{parameter}",
    )


def _on_meta(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A module whose parameters have shapes and no memory, for evaluation."""
    with torch.device("meta"):
        return make().eval()
