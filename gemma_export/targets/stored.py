"""What all targets store beside the checkpoint's tensors."""

from __future__ import annotations

from gemma_export.config import DecoderSpec

__all__ = ["rotary_tensors"]


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
