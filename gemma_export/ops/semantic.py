"""What a semantic operator is, and how one is traced."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir
import onnxscript
import torch

__all__ = ["DOMAIN", "OPSET", "SemanticOp", "is_tracing"]

# the ONNX domain and version of all semantic operators
DOMAIN = "gemma"
VERSION = 1
OPSET = onnxscript.values.Opset(DOMAIN, VERSION)

AttributeValue = int | float | str | bool


def is_tracing() -> bool:
    """Whether operators should leave semantic nodes instead of computing.

    Symbolic nodes compute nothing (they return zeros), so eager runs must never take that branch.
    """
    return torch.compiler.is_exporting()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemanticOp:
    """An operator of the `gemma` domain: its name and its meaning in the standard opset."""

    name: str
    # the function body; every call of the operator means exactly this
    function: onnxscript.OnnxFunction

    def node(
        self,
        inputs: Sequence[torch.Tensor | None],
        attributes: Mapping[str, AttributeValue],
        shape: Sequence[int | torch.SymInt],
        metadata: Mapping[str, str] | None = None,
    ) -> torch.Tensor:
        """Leaves one node with one output in the traced graph."""
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{self.name}",
            tuple(inputs),
            dict(attributes),
            dtype=_dtype_of(inputs),
            shape=shape,
            version=VERSION,
            metadata_props=dict(metadata or {}),
        )

    def node_multi(
        self,
        inputs: Sequence[torch.Tensor | None],
        attributes: Mapping[str, AttributeValue],
        shapes: Sequence[Sequence[int | torch.SymInt]],
    ) -> Sequence[torch.Tensor]:
        """Leaves one node with several outputs, all of the first floating-point input's dtype."""
        return torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{self.name}",
            tuple(inputs),
            dict(attributes),
            dtypes=[_dtype_of(inputs)] * len(shapes),
            shapes=shapes,
            version=VERSION,
        )

    def function_ir(self) -> ir.Function:
        """The function body as the graph carries it."""
        return ir.serde.deserialize_function(self.function.to_function_proto())


def _dtype_of(inputs: Sequence[torch.Tensor | None]) -> torch.dtype:
    for tensor in inputs:
        if tensor is not None and tensor.is_floating_point():
            return tensor.dtype
    raise TypeError("a semantic operator needs one floating-point input")
