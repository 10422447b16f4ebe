"""Layers with a window keep the keys and values of their window only: for runtimes that know such caches."""

from __future__ import annotations

import onnx_ir as ir

from gemma_export.errors import PassError
from gemma_export.passes.semantic_nodes import nodes_of, refuse

__all__ = ["WINDOW_CAPACITY", "WindowedCache"]

_NAME = "WindowedCache"
# the symbol of a window-sized tensor's rows, which the runtime chooses: the window or more
WINDOW_CAPACITY = "window_capacity"
_ATTRIBUTE = "sliding_window_cache"
# zero-based input positions of GroupQueryAttention, and its outputs
_PAST, _PRESENT = (3, 4), (1, 2)


class WindowedCache(ir.passes.InPlacePass):
    """GroupQueryAttention that evicts what has left the window.

    Before: GroupQueryAttention(..., past_key, past_value, ...) with local_window_size = W > 0
            over past [batch_size, kv_heads, past_sequence_length, head_dim], present [..., total_sequence_length, ...]
    After:  the same with sliding_window_cache = 1 over past and present [batch_size, kv_heads, window_capacity,
            head_dim]; layers without a window are as they were

    After T tokens of a row its first L(T) rows of present hold the last L(T) tokens in order, W <= L(T) <= capacity
    once there are so many; gemma_runtime.window_layout has the formula. The mask stays as long as the text.

    Preconditions: the attention is fused; one window for all layers that have one, since they share the symbol.
    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (GroupQueryAttention,
    Windowed KV Cache).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every layer with a window, or raises PassError with the node and the reason."""
        nodes = [node for node in _windowed(model) if _ATTRIBUTE not in node.attributes]
        windows = {node.attributes["local_window_size"].as_int() for node in nodes}
        if len(windows) > 1:
            raise refuse(nodes[0], _NAME, f"layers have windows of {sorted(windows)}, expected one size")
        for node in nodes:
            _rewrite(node)
        return ir.passes.PassResult(model, modified=bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        """No layer with a window keeps more than it needs."""
        left = [node for node in _windowed(model) if _ATTRIBUTE not in node.attributes]
        if left:
            raise PassError(
                f"{_NAME}: {len(left)} layers with a full-size cache left, first {left[0].name}",
                hint="Report this with --debug.",
            )


def _windowed(model: ir.Model) -> list[ir.Node]:
    found = []
    for node in nodes_of(model, "GroupQueryAttention", "com.microsoft"):
        window = node.attributes.get("local_window_size")
        if window is not None and window.as_int() > 0:
            found.append(node)
    return found


def _rewrite(node: ir.Node) -> None:
    for past, present in zip(_PAST, _PRESENT, strict=True):
        state, output = node.inputs[past], node.outputs[present]
        if state is None or not state.is_graph_input() or len(state.uses()) != 1 or state.shape is None:
            raise refuse(node, _NAME, f"its input {past} is no state of its own")
        if not output.is_graph_output() or output.uses():
            raise refuse(node, _NAME, f"its output {present} is no state of its own")
        rows, heads, _, head_dim = state.shape
        state.shape = output.shape = ir.Shape([rows, heads, WINDOW_CAPACITY, head_dim])
    node.attributes[_ATTRIBUTE] = ir.AttrInt64(_ATTRIBUTE, 1)
