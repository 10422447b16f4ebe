"""Which operators, versions and element types DirectML's provider runs: its restrictions as data.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md (DmlExecutionProvider) at commit
001d12d2623fd411ce0f83d05abb5e82304a3389. A kernel there belongs to one version of its operator: the provider knows
Cast-21 but not Cast-23, so graphs end at opset 21. Besides, by the kernels' own sources:

- GroupQueryAttention neither rotates, caps, nor windows, wants query, key and value apart, takes every step of
  several tokens for a new prompt, and writes the cache in place only;
- no kernel for the standard Gelu (FastGelu instead), and none for GatherBlockQuantized;
- no bfloat16 anywhere.
"""

from __future__ import annotations

import dataclasses

__all__ = ["OPSET_CEILING", "supported"]

OPSET_CEILING = 21

_CONTRIB = "com.microsoft"


@dataclasses.dataclass(frozen=True)
class _Kernel:
    # version of the operator that the kernel is registered for
    version: int
    dtypes: frozenset[str]


_FLOATS = frozenset({"float32", "float16"})
_ALL_BUT_BOOL = _FLOATS | {"int64", "int32"}
_ALL = _ALL_BUT_BOOL | {"bool"}
_KERNELS = {
    ("", "Add"): _Kernel(14, _ALL_BUT_BOOL),
    ("", "And"): _Kernel(7, frozenset({"bool"})),
    ("", "ArgMax"): _Kernel(13, _ALL_BUT_BOOL),
    ("", "Cast"): _Kernel(21, _ALL),
    ("", "Concat"): _Kernel(13, _ALL),
    ("", "Cos"): _Kernel(7, _FLOATS),
    ("", "Div"): _Kernel(14, _ALL_BUT_BOOL),
    ("", "Equal"): _Kernel(19, _ALL_BUT_BOOL),
    ("", "Expand"): _Kernel(13, _ALL),
    ("", "Gather"): _Kernel(13, _ALL),
    ("", "GatherElements"): _Kernel(13, _ALL),
    ("", "GatherND"): _Kernel(13, _ALL),
    ("", "Less"): _Kernel(13, _ALL_BUT_BOOL),
    ("", "LessOrEqual"): _Kernel(16, _ALL_BUT_BOOL),
    ("", "Max"): _Kernel(13, _ALL_BUT_BOOL),
    ("", "Min"): _Kernel(13, _ALL_BUT_BOOL),
    # no int64
    ("", "Mod"): _Kernel(13, frozenset({"float32", "float16", "int32"})),
    ("", "Mul"): _Kernel(14, _ALL_BUT_BOOL),
    ("", "Neg"): _Kernel(13, _ALL_BUT_BOOL),
    ("", "Range"): _Kernel(11, frozenset({"float32", "int64", "int32"})),
    ("", "ReduceSum"): _Kernel(13, _ALL_BUT_BOOL),
    ("", "Reshape"): _Kernel(21, _ALL),
    ("", "Shape"): _Kernel(21, _ALL),
    ("", "SimplifiedLayerNormalization"): _Kernel(1, _FLOATS),
    ("", "Sin"): _Kernel(7, _FLOATS),
    ("", "Size"): _Kernel(21, _ALL),
    ("", "Slice"): _Kernel(13, _ALL),
    ("", "Softmax"): _Kernel(13, _FLOATS),
    ("", "Squeeze"): _Kernel(21, _ALL),
    ("", "Sub"): _Kernel(14, _ALL_BUT_BOOL),
    ("", "Tanh"): _Kernel(13, _FLOATS),
    ("", "Transpose"): _Kernel(21, _ALL),
    ("", "Unsqueeze"): _Kernel(21, _ALL),
    ("", "Where"): _Kernel(16, _ALL),
    (_CONTRIB, "FastGelu"): _Kernel(1, _FLOATS),
    (_CONTRIB, "FusedMatMul"): _Kernel(1, _FLOATS),
    (_CONTRIB, "GroupQueryAttention"): _Kernel(1, _FLOATS),
    (_CONTRIB, "MatMulNBits"): _Kernel(1, _FLOATS),
    (_CONTRIB, "RotaryEmbedding"): _Kernel(1, _FLOATS),
    (_CONTRIB, "SkipSimplifiedLayerNormalization"): _Kernel(1, _FLOATS),
}
# index arithmetic without a kernel of the provider runs on the CPU provider, which every session has
_ON_CPU = frozenset({("", "Mod", "int64")})


def supported(domain: str, op_type: str, dtype: str, version: int) -> bool:
    """Whether a session on DirectML runs a node without moving floating-point tensors to the CPU.

    Args:
        domain: "" for the standard operators.
        op_type: the operator.
        dtype: ONNX name of the element type that selects the kernel: "float32", "int64", ...
        version: the operator's version in the graph's opset ("since version" of its schema).
    """
    if (domain, op_type, dtype) in _ON_CPU:
        return True
    kernel = _KERNELS.get((domain, op_type))
    return kernel is not None and dtype in kernel.dtypes and version == kernel.version
