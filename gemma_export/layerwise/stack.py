"""What a layerwise run needs to know about an architecture, and how this project's own reference provides it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from gemma_export.config import DecoderSpec
from gemma_export.families import Family
from gemma_export.nn import rotary_tables
from gemma_export.nn.attention import Context
from gemma_export.tensors import TensorSource
from gemma_export.weights import Cast, Stored, Weight

__all__ = ["Call", "LayerStack", "checkpoint_weights", "reference_stack"]

# Runs a layer: (module with its weights, layer's index, hidden states [B, S, H]) -> hidden states [B, S, H]. Sequences
# start at position 0, are causal and hold no padding.
Call = Callable[[torch.nn.Module, int, torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerStack:
    """An architecture, layer by layer, without weights.

    Modules come with their parameters on the meta device (or anywhere: they are replaced) and leave once used.
    """

    num_layers: int
    hidden_size: int
    vocab_size: int
    # tensor [vocab_size, hidden_size] whose rows start the stream, and the factor on them
    embedding: str
    embedding_scale: float
    # layer i
    layer: Callable[[int], torch.nn.Module]
    call: Call
    # bound of the logits' soft-capping; 0 where there is none
    final_softcap: float
    # the norm before the head
    norm: Callable[[], torch.nn.Module]
    # tensor [vocab_size, hidden_size] of the head; the embedding's where both are tied
    head: str
    # name of a layer's parameter -> name of its weight, for (layer's index, parameter)
    layer_weight: Callable[[int, str], str]
    # the same for the norm before the head
    norm_weight: Callable[[str], str]


def reference_stack(family: Family, spec: DecoderSpec, *, positions: int) -> LayerStack:
    """This project's own reference: the family's modules, eager.

    Args:
        family: the architecture.
        spec: its sizes.
        positions: longest sequence that will be run.
    """
    # on the meta device modules of any size cost nothing
    with torch.device("meta"):
        backbone = family.build(spec).model
    rotary, local_rotary = (
        rotary_tables(positions=positions, head_dim=spec.head_dim, rotary=kind)
        for kind in (spec.rotary, spec.local_rotary)
    )
    states = family.cache_states(spec)
    layers = list(backbone.layers)

    def call(layer: torch.nn.Module, index: int, hidden: torch.Tensor) -> torch.Tensor:
        batch, sequence, _ = hidden.shape
        mask = torch.ones(batch, sequence, dtype=torch.int64)
        empty = hidden.new_zeros(batch, states[index].num_heads, 0, states[index].head_dim)
        context = Context(attention_mask=mask, rotary=rotary, local_rotary=local_rotary)
        output: torch.Tensor = layer(hidden, context, (empty, empty))[0]
        return output

    return LayerStack(
        num_layers=spec.num_hidden_layers,
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        embedding="model.embed_tokens.weight",
        embedding_scale=backbone.embed_tokens.scale,
        layer=lambda index: layers[index],
        call=call,
        final_softcap=spec.final_softcap,
        norm=lambda: backbone.norm,
        head="model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight",
        layer_weight=lambda index, parameter: f"model.layers.{index}.{parameter}",
        norm_weight=lambda parameter: f"model.norm.{parameter}",
    )


def checkpoint_weights(source: TensorSource) -> Callable[[str], Weight]:
    """Name -> lazy float32 weight of a checkpoint, as `LayerwiseRun` takes them."""
    return lambda name: Cast(Stored(source, name), torch.float32)
