"""Which operators and element types the providers of the `ort` target run: the allow-list of final graphs.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md at commit
001d12d2623fd411ce0f83d05abb5e82304a3389; a test compares the CPU's part with the kernels of the installed release.
"""

from __future__ import annotations

__all__ = ["supported"]

_CONTRIB = "com.microsoft"

# Index arithmetic. Every session has the CPU provider too, and onnxruntime keeps shape arithmetic there by itself, so
# these run whatever the provider of the floating-point nodes is.
_INTEGERS = frozenset({"int64", "int32", "bool"})
_INDEX_OPS = frozenset(
    {
        "Add",
        "ArgMax",
        "Cast",
        "Div",
        "Equal",
        "GatherElements",
        "Max",
        "Min",
        "Mod",
        "Neg",
        "Range",
        "ReduceSum",
        "Reshape",
        "Shape",
        "Size",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
    }
)

_BOTH = frozenset({"float32", "float16"})
_THREE = _BOTH | {"bfloat16"}
# (domain, operator) -> floating-point types with a kernel of the provider itself
_FLOAT_KERNELS: dict[str, dict[tuple[str, str], frozenset[str]]] = {
    "cpu": {
        ("", "Add"): frozenset({"float32"}),
        ("", "Cast"): _BOTH,
        ("", "Cos"): frozenset({"float32"}),
        ("", "Div"): frozenset({"float32"}),
        ("", "Gather"): _BOTH,
        ("", "GatherND"): _BOTH,
        ("", "Gelu"): frozenset({"float32"}),
        ("", "Mul"): frozenset({"float32"}),
        ("", "Reshape"): _BOTH,
        ("", "SimplifiedLayerNormalization"): _BOTH,
        ("", "Sin"): frozenset({"float32"}),
        ("", "Slice"): _BOTH,
        ("", "Tanh"): frozenset({"float32"}),
        (_CONTRIB, "FusedMatMul"): frozenset({"float32"}),
        (_CONTRIB, "GatherBlockQuantized"): _BOTH,
        (_CONTRIB, "GroupQueryAttention"): _BOTH,
        (_CONTRIB, "MatMulNBits"): _BOTH,
        (_CONTRIB, "RotaryEmbedding"): _BOTH,
        (_CONTRIB, "SkipSimplifiedLayerNormalization"): _BOTH,
    },
    "cuda": {
        ("", "Add"): _THREE,
        ("", "Cast"): _THREE,
        ("", "Cos"): _BOTH,
        ("", "Div"): _THREE,
        ("", "Gather"): _THREE,
        ("", "GatherND"): _THREE,
        ("", "Gelu"): _THREE,
        ("", "Mul"): _THREE,
        ("", "Reshape"): _THREE,
        ("", "SimplifiedLayerNormalization"): _THREE,
        ("", "Sin"): _BOTH,
        ("", "Slice"): _THREE,
        ("", "Tanh"): _THREE,
        (_CONTRIB, "FusedMatMul"): _THREE,
        (_CONTRIB, "GatherBlockQuantized"): _THREE,
        # no float32: this is why an fp32 graph does not list CUDA
        (_CONTRIB, "GroupQueryAttention"): frozenset({"float16", "bfloat16"}),
        (_CONTRIB, "MatMulNBits"): _THREE,
        (_CONTRIB, "RotaryEmbedding"): _THREE,
        (_CONTRIB, "SkipSimplifiedLayerNormalization"): _THREE,
    },
}
# What graphs with DequantizeLinear (`--format qdq`) need besides, on the CPU alone
_QDQ_KERNELS: dict[tuple[str, str], frozenset[str]] = {
    ("", "DequantizeLinear"): _BOTH,
    ("", "Floor"): frozenset({"float32"}),
    ("", "Gather"): frozenset({"int8", "uint8"}),
    ("", "MatMul"): frozenset({"float32"}),
    ("", "Sub"): frozenset({"float32"}),
    ("", "Transpose"): _BOTH,
    ("", "Where"): frozenset({"float32"}),
}
# What products of 8-bit activations (`--int8-dynamic`) need besides, on the CPU alone: graphs are float32, which no
# other provider of this target runs
_INTEGER_PRODUCT_KERNELS: dict[tuple[str, str], frozenset[str]] = {
    ("", name): frozenset({"float32"}) for name in ("Abs", "Max", "QuantizeLinear", "ReduceMax")
} | {(_CONTRIB, "MatMulIntegerToFloat"): frozenset({"float32"})}
# functions of the standard that sessions replace by operators above
_QDQ_FUNCTIONS = frozenset({("", "CastLike")})
# A float16 node without a float16 kernel runs in float32 between two casts that onnxruntime inserts; only its CPU
# provider does that. Source: https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/optimizer/insert_cast_transformer.cc
_WIDENED = {"cpu": {"float16": "float32"}}


def supported(provider: str, domain: str, op_type: str, dtype: str) -> bool:
    """Whether a session on `provider` runs a node.

    Args:
        provider: "cpu" or "cuda".
        domain: "" for the standard operators.
        op_type: the operator.
        dtype: the ONNX name of the element type that selects the kernel: "float32", "float16", "int64", ...
    """
    if dtype in _INTEGERS:
        return domain == "" and op_type in _INDEX_OPS
    kernels = _FLOAT_KERNELS[provider].get((domain, op_type), frozenset())
    if provider == "cpu":
        if (domain, op_type) in _QDQ_FUNCTIONS:
            return dtype in _BOTH
        for more in (_QDQ_KERNELS, _INTEGER_PRODUCT_KERNELS):
            kernels |= more.get((domain, op_type), frozenset())
    return dtype in kernels or _WIDENED.get(provider, {}).get(dtype) in kernels
