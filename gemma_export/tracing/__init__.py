"""From a torch decoder on fake tensors to a readable graph of semantic nodes."""

from __future__ import annotations

from gemma_export.tracing.binding import bind_weights, model_weight
from gemma_export.tracing.trace import trace_decoder

__all__ = ["bind_weights", "model_weight", "trace_decoder"]
