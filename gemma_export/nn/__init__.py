"""Modules shared by the Gemma families. Each forward fits on a screen; parameter names are the checkpoints' own."""

from __future__ import annotations

from gemma_export.nn.attention import GroupedQueryAttention
from gemma_export.nn.decoder import Decoder, LayerFactory, PostNormLayer, PreNormLayer
from gemma_export.nn.mlp import GatedMLP
from gemma_export.nn.norm import HeadNorm, RMSNorm
from gemma_export.nn.projection import Projection
from gemma_export.nn.rotary import inverse_frequencies, rotary_tables

__all__ = [
    "Decoder",
    "GatedMLP",
    "GroupedQueryAttention",
    "HeadNorm",
    "LayerFactory",
    "PostNormLayer",
    "PreNormLayer",
    "Projection",
    "RMSNorm",
    "inverse_frequencies",
    "rotary_tables",
]
