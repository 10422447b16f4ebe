"""Rotary embedding in a target's graph: tables that are stored, or rows that each step computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemma_export.config import DecoderSpec

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["rotary_tensors", "settle_rotary"]


def rotary_tensors(spec: DecoderSpec, *, computed: bool = False) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of the rotary tables.

    Args:
        spec: the architecture.
        computed: whether the target's graph computes rows of its own, from frequencies that it holds itself.
    """
    if computed:
        return ()
    table = (spec.max_position_embeddings, spec.head_dim // 2)
    return tuple((f"{function}_cache{suffix}", table) for suffix in spec.rotary_tables for function in ("cos", "sin"))


def settle_rotary(model: ir.Model, spec: DecoderSpec) -> None:
    """Rows computed in each step, where tables would weigh too much; in place, once the precision is applied."""
    if spec.computes_rotary:
        from gemma_export import passes

        passes.ComputeRotary()(model)
