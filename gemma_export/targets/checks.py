"""What every target asks of its finished graphs: the fusions it promised, and nodes whose element type is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gemma_export.config import DecoderSpec
from gemma_export.errors import PassError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["check_counts", "main_dtype", "norms_beside_sums"]

# one weight, one product, whatever the weight is stored in
_QUANTISED = {"MatMulNBits": "FusedMatMul", "MatMulIntegerToFloat": "FusedMatMul", "MatMul": "FusedMatMul"}
# operators whose first input is not of the type that they compute in: packed bytes, a condition, another type
_BY_OUTPUT = frozenset({"CastLike", "DequantizeLinear", "GatherBlockQuantized", "MatMulIntegerToFloat", "Where"})


def check_counts(target: str, model: ir.Model, layers: int, expected: Mapping[str, int]) -> None:
    """Compares operator counts with what a decoder of `layers` layers must have.

    A product over integer weights counts as the product that it stands for.

    Raises:
        PassError: names the first operator whose count differs.
    """
    # a target's own products are counted under their own name
    meaning = {name: product for name, product in _QUANTISED.items() if name not in expected}
    found = Counter(meaning.get(node.op_type, node.op_type) for node in model.graph)
    for op_type, count in expected.items():
        if found[op_type] != count:
            raise PassError(
                f"target {target}: expected {count} {op_type} nodes for {layers} layers, found {found[op_type]}",
                hint="A required fusion did not happen. Report this with --debug.",
            )


def norms_beside_sums(spec: DecoderSpec) -> int:
    """Norms of a layer that do not follow a residual sum: behind each branch, and of queries and keys."""
    return (2 if spec.post_norms else 0) + (2 if spec.qk_norm else 0)


def main_dtype(target: str, node: ir.Node) -> str:
    """The element type that selects a node's kernel: the first typed input's, else the first output's.

    Raises:
        PassError: the node has no typed value.
    """
    values = node.outputs if node.op_type in _BY_OUTPUT else (*node.inputs, *node.outputs)
    for value in values:
        if value is not None and value.dtype is not None:
            name = value.dtype.name.lower()
            return "float32" if name == "float" else name
    raise PassError(f"target {target}: {node.name} has no typed input or output", hint="Report this with --debug.")
