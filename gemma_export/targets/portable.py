"""Any runtime that reads ONNX opset 23: standard operators only, inlined or as the semantic functions themselves.

Source: https://onnx.ai/onnx/operators/ (Attention, RotaryEmbedding, RMSNormalization, Gelu).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from gemma_export.config import DecoderSpec
from gemma_export.errors import PassError
from gemma_export.targets.checks import check_counts, norms_beside_sums
from gemma_export.targets.rotary import rotary_tensors, settle_rotary
from gemma_export.targets.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from gemma_export.passes import TransposedBlocks
    from gemma_export.weights import Weight

__all__ = ["PORTABLE"]

_OPSET = 23
# onnxruntime's CPU provider only: its other providers have no kernels for some of the standard operators, and a graph
# that falls back node by node is what the ort target is for
_PROVIDERS = {"float32": ("cpu",), "float16": ("cpu",)}
_FUNCTIONS = "gemma"


def _lower(model: ir.Model) -> None:
    """Every semantic node but LastTokens becomes standard operators."""
    from gemma_export import passes

    for rewrite in (
        passes.LowerAttention(),
        passes.LowerHeadNorms("RMSNormalization"),
        passes.LowerNorms(),
        passes.LowerGeGLU(),
        passes.LowerLinearToMatMul(),
        passes.LowerEmbedding(),
        passes.LowerSoftCap(),
    ):
        rewrite(model)


def _keep_tables(model: ir.Model, spec: DecoderSpec) -> None:
    """The semantic operator looks its positions up in tables."""


def _quantise(
    model: ir.Model, matrices: Callable[[str, Weight], TransposedBlocks | None], activation_dtype: str
) -> None:
    """DequantizeLinear for every weight that the precision quantises."""
    from gemma_export import passes

    passes.QuantiseQdq(matrices)(model)


def _finish(model: ir.Model, keep: int) -> None:
    from gemma_export import passes

    passes.SelectColumns(keep)(model)
    model.functions.clear()
    model.graph.opset_imports.clear()
    model.graph.opset_imports[""] = _OPSET


def _check(model: ir.Model, spec: DecoderSpec, activation_dtype: str) -> None:
    layers = spec.num_hidden_layers
    expected = {
        "Attention": layers,
        "RotaryEmbedding": 2 * layers,
        "RMSNormalization": 1 + layers * (2 + norms_beside_sums(spec)),
        "Gelu": layers,
        # query, key, value, output, gate, up, down; the head
        "MatMul": 7 * layers + 1,
        "Tanh": 1 if spec.final_softcap else 0,
    }
    check_counts("portable", model, layers, expected)
    _check_domains(model, {""})


def _keep_functions(model: ir.Model) -> None:
    """The semantic nodes stay: their bodies say in standard operators what each means."""


def _finish_functions(model: ir.Model, keep: int) -> None:
    """LastTokens stays a function too unless all positions are wanted, where it would do nothing."""
    import onnx_ir as ir

    from gemma_export import passes

    if keep == 0:
        passes.SelectColumns(0)(model)
    else:
        for node in model.graph:
            if node.op_type == "LastTokens":
                node.attributes["keep"] = ir.AttrInt64("keep", keep)
                hidden = node.outputs[0]
                assert hidden.shape is not None
                hidden.shape = ir.Shape(["batch_size", passes.logits_positions(keep), hidden.shape[2]])
        passes.declare_logits(model, keep)
    used = {node.op_identifier() for node in model.graph}
    for identifier in [name for name in model.functions if name not in used]:
        del model.functions[identifier]
    model.graph.opset_imports.clear()
    model.graph.opset_imports.update({"": _OPSET, _FUNCTIONS: 1})


def _check_functions(model: ir.Model, spec: DecoderSpec, activation_dtype: str) -> None:
    layers = spec.num_hidden_layers
    expected = {
        "Attention": layers,
        "RMSNorm": 1 + layers * (4 if spec.post_norms else 2),
        "HeadNorm": 2 * layers if spec.qk_norm else 0,
        "SoftCap": 1 if spec.final_softcap else 0,
        "GeGLU": layers,
        "Linear": 7 * layers + 1,
        "ResidualAdd": 2 * layers,
        "ScaledEmbedding": 1,
    }
    check_counts("portable", model, layers, expected)
    _check_domains(model, {_FUNCTIONS})
    for node in model.graph:
        if node.op_identifier() not in model.functions:
            raise PassError(f"target portable: {node.name} has no function body", hint="Report this with --debug.")
    for function in model.functions.values():
        _check_domains(function, {""})


def _check_domains(graph: ir.Model | ir.Function, domains: set[str]) -> None:
    import onnx_ir as ir

    for node in graph.graph if isinstance(graph, ir.Model) else graph:
        if node.domain not in domains:
            raise PassError(
                f"target portable: {node.name} is {node.domain}::{node.op_type}, which not every runtime knows",
                hint="A lowering did not happen. Report this with --debug.",
            )


def _stored_tensors(
    shapes: Mapping[str, tuple[int, ...]], spec: DecoderSpec
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The data file's tensors: the checkpoint's own, and the rotary tables."""
    return (*shapes.items(), *rotary_tensors(spec))


def _stored_computed(
    shapes: Mapping[str, tuple[int, ...]], spec: DecoderSpec
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The same without tables that steps compute rows of."""
    return (*shapes.items(), *rotary_tensors(spec, computed=spec.computes_rotary))


_WITH_FUNCTIONS = Target(
    name="portable",
    opset=_OPSET,
    cache_layout="columns",
    providers=_PROVIDERS,
    # what rotary embedding itself asks for
    head_dim_multiple=2,
    chunks="batched",
    lower=_keep_functions,
    settle=_keep_tables,
    finish=_finish_functions,
    compat=None,
    static=None,
    check=_check_functions,
    stored_tensors=_stored_tensors,
    with_functions=None,
)
PORTABLE = dataclasses.replace(
    _WITH_FUNCTIONS,
    lower=_lower,
    settle=settle_rotary,
    finish=_finish,
    stored_tensors=_stored_computed,
    check=_check,
    with_functions=_WITH_FUNCTIONS,
    quantise=_quantise,
    weight_format="qdq",
)
