"""Modules shared by the Gemma families. Each forward fits on a screen; parameter names are the checkpoints' own."""

from __future__ import annotations

from gemma_export.nn.attention import GroupedQueryAttention
from gemma_export.nn.decoder import Decoder, LayerFactory, PreNormLayer
from gemma_export.nn.mlp import GatedMLP
from gemma_export.nn.norm import RMSNorm
from gemma_export.nn.projection import Projection
from gemma_export.nn.rotary import rotary_tables

__all__ = [
    "Decoder",
    "GatedMLP",
    "GroupedQueryAttention",
    "LayerFactory",
    "PreNormLayer",
    "Projection",
    "RMSNorm",
    "rotary_tables",
]
