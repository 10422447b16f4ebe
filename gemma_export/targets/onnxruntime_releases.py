"""The first onnxruntime release that loads a graph: what the manifest's `min_onnxruntime` says.

Every entry was read from the operator schemas of the released wheels themselves (get_all_operator_schema of each
release from 1.20.0 to 1.32.0), so it is about schemas; numerics are tested on the release that constraints.txt pins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemma_export.errors import PassError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["first_release"]

Release = tuple[int, int, int]

# the oldest release whose schemas were read; graphs that need less still say this
_OLDEST: Release = (1, 20, 0)
# ai.onnx opset -> release
_OPSETS: dict[int, Release] = {21: (1, 20, 0), 23: (1, 23, 0), 24: (1, 24, 1)}
# com.microsoft operator -> number of inputs -> release, and attribute -> release
_INPUTS: dict[str, dict[int, Release]] = {
    "GroupQueryAttention": {
        9: (1, 20, 0),
        11: (1, 22, 0),
        12: (1, 23, 0),
        14: (1, 25, 0),
        16: (1, 28, 0),
        17: (1, 32, 0),
    },
    "FastGelu": {1: (1, 20, 0)},
    "FusedMatMul": {2: (1, 20, 0)},
    "RotaryEmbedding": {4: (1, 20, 0)},
    # the schema is as old as 1.20, for 4-bit types only: uint8 data came with 1.22, its packed 4 bits with 1.23
    "GatherBlockQuantized": {4: (1, 23, 0)},
    "MatMulIntegerToFloat": {5: (1, 20, 0)},
    "MatMulNBits": {4: (1, 20, 0)},
    "SkipSimplifiedLayerNormalization": {4: (1, 20, 0)},
}
_ATTRIBUTES: dict[str, dict[str, Release]] = {
    "GroupQueryAttention": {
        **dict.fromkeys(("num_heads", "kv_num_heads", "scale", "softcap", "do_rotary", "rotary_interleaved"), _OLDEST),
        "local_window_size": _OLDEST,
        "qk_output": (1, 23, 0),
        "sliding_window_cache": (1, 29, 0),
        "causal": (1, 30, 0),
        # the schemas have them since 1.25: what the CPU kernel does with an int8 cache decides
        **dict.fromkeys(("k_quant_type", "v_quant_type", "kv_cache_bit_width"), (1, 28, 0)),
    },
    "FastGelu": {},
    "FusedMatMul": {"alpha": _OLDEST, "transB": _OLDEST},
    "RotaryEmbedding": {"interleaved": _OLDEST},
    "GatherBlockQuantized": dict.fromkeys(("bits", "block_size", "gather_axis", "quantize_axis"), (1, 23, 0)),
    "MatMulIntegerToFloat": {},
    # 8 bits and blocks up to 256 were run on 1.23.0 and 1.24.1: an attribute's value is not told apart here
    "MatMulNBits": {**dict.fromkeys(("K", "N", "accuracy_level", "block_size"), _OLDEST), "bits": (1, 23, 0)},
    "SkipSimplifiedLayerNormalization": {"epsilon": _OLDEST},
}
# Activations of attention over an int8 cache -> release, run on each from 1.25.0 to 1.32.0 with this project's numbers:
# 1.25 and 1.26 refuse it, 1.27 gives wrong numbers for a padded batch, 1.27 and 1.28 refuse float16.
_INT8_CACHE: dict[str, Release] = {"FLOAT": (1, 28, 0), "FLOAT16": (1, 29, 0)}


def first_release(model: ir.Model) -> str:
    """The first release, as text, whose schemas know every operator, input and attribute of a graph.

    Raises:
        PassError: the table does not know an operator, opset or attribute: it must be measured first.
    """
    opset = model.graph.opset_imports[""]
    if opset not in _OPSETS:
        raise _unknown(f"opset {opset}")
    needed = _OPSETS[opset]
    for node in model.graph:
        if node.domain != "com.microsoft":
            continue
        if node.op_type not in _INPUTS:
            raise _unknown(node.op_type)
        needed = max(needed, _for_inputs(node), *(_for_attribute(node, name) for name in node.attributes))
        if "kv_cache_bit_width" in node.attributes:
            needed = max(needed, _for_int8_cache(node))
    return ".".join(map(str, needed))


def _for_inputs(node: ir.Node) -> Release:
    used = max(index for index, value in enumerate(node.inputs) if value is not None) + 1
    enough = [release for count, release in _INPUTS[node.op_type].items() if count >= used]
    if not enough:
        raise _unknown(f"input {used} of {node.op_type}")
    return min(enough)


def _for_attribute(node: ir.Node, name: str) -> Release:
    known = _ATTRIBUTES[node.op_type]
    if name not in known:
        raise _unknown(f"attribute {name} of {node.op_type}")
    return known[name]


def _for_int8_cache(node: ir.Node) -> Release:
    values = [value for value in node.inputs[:1] if value is not None and value.dtype is not None]
    activations = values[0].dtype.name if values and values[0].dtype is not None else "untyped"
    if activations not in _INT8_CACHE:
        raise _unknown(f"an int8 cache under {activations} activations")
    return _INT8_CACHE[activations]


def _unknown(what: str) -> PassError:
    return PassError(
        f"no onnxruntime release is recorded for {what}",
        hint="targets/onnxruntime_releases.py needs a measured entry. Report this bug.",
    )
