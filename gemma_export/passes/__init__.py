"""Graph rewrites, one file each. Each consumes semantic nodes by identity and states what must be gone afterwards."""

from __future__ import annotations

from gemma_export.passes.align_rows import AlignRows
from gemma_export.passes.attention_by_parts import AttentionByParts
from gemma_export.passes.compute_rotary import ComputeRotary
from gemma_export.passes.drop_query_lengths import DropQueryLengths
from gemma_export.passes.fold_channel_scales import FoldChannelScales
from gemma_export.passes.fold_input_order import FoldInputOrder
from gemma_export.passes.fuse_attention import FuseGroupQueryAttention
from gemma_export.passes.fuse_attention_rotary_outside import FuseAttentionRotaryOutside
from gemma_export.passes.fuse_norms import FuseNorms
from gemma_export.passes.logits_positions import declare_logits, logits_positions
from gemma_export.passes.lower_attention import LowerAttention
from gemma_export.passes.lower_embedding import LowerEmbedding
from gemma_export.passes.lower_geglu import LowerGeGLU
from gemma_export.passes.lower_head_norms import LowerHeadNorms
from gemma_export.passes.lower_linear import LowerLinear
from gemma_export.passes.lower_linear_to_matmul import LowerLinearToMatMul
from gemma_export.passes.lower_norms import LowerNorms
from gemma_export.passes.lower_soft_cap import LowerSoftCap
from gemma_export.passes.quantise_activations import QuantiseActivations, RowQuantised
from gemma_export.passes.quantise_cache import QuantiseCache
from gemma_export.passes.quantise_matrices import BlockQuantised, QuantiseMatrices
from gemma_export.passes.quantise_qdq import QuantiseQdq, TransposedBlocks
from gemma_export.passes.rescale_residual import RescaleResidual
from gemma_export.passes.select_columns import SelectColumns
from gemma_export.passes.select_logits import SelectLogits
from gemma_export.passes.static_step import StaticStep
from gemma_export.passes.windowed_cache import WindowedCache

__all__ = [
    "AlignRows",
    "AttentionByParts",
    "BlockQuantised",
    "ComputeRotary",
    "DropQueryLengths",
    "FoldChannelScales",
    "FoldInputOrder",
    "FuseAttentionRotaryOutside",
    "FuseGroupQueryAttention",
    "FuseNorms",
    "LowerAttention",
    "LowerEmbedding",
    "LowerGeGLU",
    "LowerHeadNorms",
    "LowerLinear",
    "LowerLinearToMatMul",
    "LowerNorms",
    "LowerSoftCap",
    "QuantiseActivations",
    "QuantiseCache",
    "QuantiseMatrices",
    "QuantiseQdq",
    "RescaleResidual",
    "RowQuantised",
    "SelectColumns",
    "SelectLogits",
    "StaticStep",
    "TransposedBlocks",
    "WindowedCache",
    "declare_logits",
    "logits_positions",
]
