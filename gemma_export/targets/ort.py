"""onnxruntime's CPU and CUDA providers: one graph structure with contrib operators.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md and .../OperatorKernels.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gemma_export.config import DecoderSpec
from gemma_export.errors import PassError
from gemma_export.targets.checks import check_counts, main_dtype, norms_beside_sums
from gemma_export.targets.rotary import rotary_tensors, settle_rotary
from gemma_export.targets.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from gemma_export.passes import BlockQuantised, RowQuantised, TransposedBlocks
    from gemma_export.weights import Weight

__all__ = ["ORT"]

_OPSET = 21
# the CPU provider has no bfloat16 kernels, CUDA's attention no float32 one
_PROVIDERS = {"float32": ("cpu",), "float16": ("cpu", "cuda"), "bfloat16": ("cuda",)}
# Of MatMulNBits, for the CPU, which quantises activations to 8 bits block by block at 4; the CUDA kernels ignore it.
# Measured in float16, one row times 2048 x 16384 on two cores: 4 bits 12 ms at level 0, 3.8 at 2 and 0.9 at 4; 8 bits
# 510, 560 and 1.6. A 2B in int8 with float16 activations decoded 0.15 tokens a second at level 0.
_ACCURACY_LEVELS = {"float32": 4, "float16": 4}
# Of graphs with an int8 cache. The operator's schema has it for CUDA too, and the CUDA kernel is said to attend to the
# unrounded keys of a prompt where the CPU's attends to the stored ones; nothing of that was measured here.
_CACHE_PROVIDERS = {"float32": ("cpu",), "float16": ("cpu",)}
# of graphs with DequantizeLinear: only the CPU provider has kernels for all that a look-up in a table takes apart
_QDQ_PROVIDERS = {"float32": ("cpu",), "float16": ("cpu",)}


def _lower(model: ir.Model) -> None:
    """Every semantic node but LastTokens becomes a kernel of onnxruntime."""
    from gemma_export import passes

    # one by one: ir.passes.Sequential would hide a refusal's message and hint behind an error of its own
    for rewrite in (
        passes.AlignRows(),
        passes.FuseAttentionRotaryOutside(plain=False, normalised=True),
        passes.FuseGroupQueryAttention(),
        passes.LowerHeadNorms("SimplifiedLayerNormalization"),
        passes.FuseNorms(),
        passes.LowerGeGLU(),
        passes.LowerLinear(),
        passes.LowerEmbedding(),
        passes.LowerSoftCap(),
    ):
        rewrite(model)


def _quantise(model: ir.Model, matrices: Callable[[str, Weight], BlockQuantised | None], activation_dtype: str) -> None:
    """MatMulNBits and GatherBlockQuantized for every weight that the precision quantises."""
    from gemma_export import passes

    passes.QuantiseMatrices(matrices, accuracy_level=_ACCURACY_LEVELS.get(activation_dtype, 0))(model)


def _quantise_activations(model: ir.Model, matrices: Callable[[str, Weight], RowQuantised | None]) -> None:
    """MatMulIntegerToFloat for every weight that the precision quantises by rows."""
    from gemma_export import passes

    passes.QuantiseActivations(matrices)(model)


def _quantise_qdq(
    model: ir.Model, matrices: Callable[[str, Weight], TransposedBlocks | None], activation_dtype: str
) -> None:
    """DequantizeLinear in front of each product; sessions fold the two into MatMulNBits at accuracy level 4."""
    from gemma_export import passes

    passes.QuantiseQdq(matrices)(model)


def _quantise_cache(model: ir.Model, scales: Mapping[str, Any]) -> None:
    """int8 past and present of GroupQueryAttention, with the scales inside the graph."""
    from gemma_export import passes

    passes.QuantiseCache(scales)(model)


def _finish(model: ir.Model, keep: int) -> None:
    """Chooses the logits' positions; nothing semantic is left, so neither are the function bodies."""
    from gemma_export import passes

    passes.SelectLogits(keep)(model)
    model.functions.clear()
    model.graph.opset_imports.clear()
    model.graph.opset_imports.update({"": _OPSET, "com.microsoft": 1})


def _compat(model: ir.Model) -> None:
    """onnxruntime before 1.32, which most packages still carry, has no query_seqlens: everything but batched chunks."""
    from gemma_export import passes

    passes.DropQueryLengths()(model)


def _static(model: ir.Model) -> None:
    """A decode step whose shapes and host-side numbers never change."""
    from gemma_export import passes

    passes.StaticStep()(model)


def _windowed(model: ir.Model) -> None:
    """Window-sized caches of the layers that have a window."""
    from gemma_export import passes

    passes.WindowedCache()(model)


def _check(model: ir.Model, spec: DecoderSpec, activation_dtype: str) -> None:
    _check_fusions(model, spec)
    _check_kernels(model, _PROVIDERS[activation_dtype])


def _check_qdq(model: ir.Model, spec: DecoderSpec, activation_dtype: str) -> None:
    _check_fusions(model, spec)
    _check_kernels(model, _QDQ_PROVIDERS[activation_dtype])


def _check_fusions(model: ir.Model, spec: DecoderSpec) -> None:
    layers = spec.num_hidden_layers
    expected = {
        "GroupQueryAttention": layers,
        "RotaryEmbedding": 2 * layers if spec.qk_norm else 0,
        "SkipSimplifiedLayerNormalization": 2 * layers,
        "SimplifiedLayerNormalization": 1 + layers * norms_beside_sums(spec),
        "Gelu": layers,
        # query-key-value, packed where nothing stands before the rotation; output, gate, up, down; the head
        "FusedMatMul": (7 if spec.qk_norm else 5) * layers + 1,
        "Tanh": 1 if spec.final_softcap else 0,
    }
    check_counts("ort", model, layers, expected)


def _check_kernels(model: ir.Model, providers: tuple[str, ...]) -> None:
    from gemma_export.targets.ort_support import supported

    for node in model.graph:
        dtype = main_dtype("ort", node)
        for provider in providers:
            if not supported(provider, node.domain, node.op_type, dtype):
                raise PassError(
                    f"target ort: the {provider} provider has no kernel for {node.op_type} ({dtype}) of {node.name}",
                    hint="The allow-list in targets/ort_support.py cites the kernels. Report this with --debug.",
                )


def _stored_tensors(
    shapes: Mapping[str, tuple[int, ...]], spec: DecoderSpec
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The data file's tensors: projections packed, norms as gains, rotary tables added."""
    stored: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if spec.qk_norm:
            # the heads are normalised before anything rotates them: nothing is packed
            stored[name] = shape
            continue
        if name.endswith((".k_proj.weight", ".v_proj.weight")):
            continue
        if name.endswith(".q_proj.weight"):
            rows = sum(shapes[name.replace(".q_proj.", f".{part}_proj.")][0] for part in "qkv")
            stored[name.replace(".q_proj.", ".qkv_proj.")] = (rows, shape[1])
        else:
            stored[name] = shape
    return (*stored.items(), *rotary_tensors(spec, computed=spec.computes_rotary))


_NBITS = Target(
    name="ort",
    opset=_OPSET,
    cache_layout="compacted",
    providers=_PROVIDERS,
    # with rotary embedding inside: "head_size shall be a multiple of 16" (1.32)
    head_dim_multiple=16,
    chunks="batched",
    lower=_lower,
    settle=settle_rotary,
    finish=_finish,
    compat=_compat,
    static=_static,
    check=_check,
    stored_tensors=_stored_tensors,
    with_functions=None,
    quantise=_quantise,
    quantise_activations=_quantise_activations,
    quantise_cache=_quantise_cache,
    cache_providers=_CACHE_PROVIDERS,
    rounded_activations=frozenset(_ACCURACY_LEVELS),
    windowed=_windowed,
)
_QDQ = dataclasses.replace(
    _NBITS,
    quantise=_quantise_qdq,
    quantise_activations=None,
    check=_check_qdq,
    providers=_QDQ_PROVIDERS,
    weight_format="qdq",
)
ORT = dataclasses.replace(_NBITS, formats={"qdq": _QDQ})
