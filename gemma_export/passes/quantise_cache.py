"""Keys and values between steps in 8-bit integers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gemma_export.passes.semantic_nodes import nodes_of, refuse, tensor_value

__all__ = ["QuantiseCache"]

_NAME = "QuantiseCache"
# zero-based input positions of GroupQueryAttention, and its outputs
_PAST, _SCALES = (3, 4), (12, 13)
_PRESENT = (1, 2)


class QuantiseCache(ir.passes.InPlacePass):
    """GroupQueryAttention that reads and writes an int8 cache.

    Before: GroupQueryAttention(qkv, "", "", past_key, past_value, ..., cos, sin, ...)
    After:  the same with int8 past and present, k_scale and v_scale float32 [1, kv_heads, 1, head_dim], and
            k_quant_type = v_quant_type = PER_CHANNEL, kv_cache_bit_width = 8

    The kernel rotates a key in the activations' type, stores round(key / scale) cut off at -128 and 127, and attends to
    scale * code, the current step's own tokens included.

    Args:
        scales: past tensor -> its scales, positive.

    Preconditions: `FuseGroupQueryAttention` ran, and the activations have their final type, since scales stay float32.
    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (GroupQueryAttention,
    Quantization); what the CPU kernel does was measured (CONTRIBUTING.md).
    """

    def __init__(self, scales: Mapping[str, npt.NDArray[np.float32]]) -> None:
        super().__init__()
        self._scales = scales

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites every GroupQueryAttention, or raises PassError with the node and the reason."""
        modified = False
        for node in nodes_of(model, "GroupQueryAttention", "com.microsoft"):
            if "kv_cache_bit_width" not in node.attributes:
                self._rewrite(model.graph, node)
                modified = True
        return ir.passes.PassResult(model, modified=modified)

    def _rewrite(self, graph: ir.Graph, node: ir.Node) -> None:
        node.resize_inputs(max(len(node.inputs), _SCALES[-1] + 1))
        for past, scale, present in zip(_PAST, _SCALES, _PRESENT, strict=True):
            state = node.inputs[past]
            if state is None or not state.is_graph_input() or len(state.uses()) != 1:
                raise refuse(node, _NAME, f"its input {past} is no state of its own")
            if not node.outputs[present].is_graph_output() or node.outputs[present].uses():
                raise refuse(node, _NAME, f"its output {present} is no state of its own")
            found = self._scales.get(str(state.name))
            if found is None:
                raise refuse(node, _NAME, f"no scales for {state.name}")
            shape = state.shape
            if shape is None or found.shape != (1, shape[1], 1, shape[3]) or found.dtype != np.float32:
                raise refuse(node, _NAME, f"scales {found.dtype} {list(found.shape)} do not fit {state.name} {shape}")
            if not (np.isfinite(found) & (found > 0)).all():
                raise refuse(node, _NAME, f"scales of {state.name} are not all positive")
            node.replace_input_with(scale, tensor_value(graph, f"{state.name}_scale", ir.tensor(found)))
            state.type = node.outputs[present].type = ir.TensorType(ir.DataType.INT8)
        for name in ("k_quant_type", "v_quant_type"):
            node.attributes[name] = ir.AttrString(name, "PER_CHANNEL")
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
