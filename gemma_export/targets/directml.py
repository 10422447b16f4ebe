"""DirectML: Windows graphics cards through onnxruntime-directml. Its restrictions are data in directml_support.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gemma_export.config import DecoderSpec
from gemma_export.errors import PassError
from gemma_export.targets.checks import check_counts, main_dtype, norms_beside_sums
from gemma_export.targets.directml_support import OPSET_CEILING, supported
from gemma_export.targets.rotary import rotary_tensors, settle_rotary
from gemma_export.targets.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["DIRECTML"]

# the same graph runs on the CPU provider, with the same numbers
_PROVIDERS = {"float32": ("directml", "cpu"), "float16": ("directml", "cpu")}
# nodes that onnxruntime registers in the default domain without a standard schema
_VERSION_1 = frozenset({"SimplifiedLayerNormalization"})


def _lower(model: ir.Model) -> None:
    """Every semantic node becomes a kernel that DirectML has, but LastTokens and attention that `_settle` takes."""
    from gemma_export import passes

    for rewrite in (
        passes.AlignRows(),
        passes.FuseAttentionRotaryOutside(unlimited=True),
        passes.LowerHeadNorms("SimplifiedLayerNormalization"),
        passes.FuseNorms(),
        passes.LowerGeGLU(contrib=True),
        passes.LowerLinear(),
        passes.LowerEmbedding(),
        passes.LowerSoftCap(),
    ):
        rewrite(model)


def _settle(model: ir.Model, spec: DecoderSpec) -> None:
    """Attention that the kernel cannot do, around a float32 softmax; then rotary embedding, which it reads too."""
    from gemma_export import passes

    passes.AttentionByParts()(model)
    settle_rotary(model, spec)


def _finish(model: ir.Model, keep: int) -> None:
    from gemma_export import passes

    passes.SelectLogits(keep)(model)
    model.functions.clear()
    model.graph.opset_imports.clear()
    model.graph.opset_imports.update({"": OPSET_CEILING, "com.microsoft": 1})


def _check(model: ir.Model, spec: DecoderSpec, activation_dtype: str) -> None:
    layers = spec.num_hidden_layers
    # whose kernel would ignore their softcap or window
    parts = layers if spec.attention_softcap else sum(window > 0 for window in spec.windows)
    expected = {
        "Attention": 0,
        "GroupQueryAttention": layers - parts,
        "Softmax": parts,
        # softcaps of the attention, and of the logits
        "Tanh": (layers if spec.attention_softcap else 0) + (1 if spec.final_softcap else 0),
        # keys and values whose rows are compacted; the logits' positions
        "GatherND": 2 * parts + 1,
        "RotaryEmbedding": 2 * layers,
        "SkipSimplifiedLayerNormalization": 2 * layers,
        "SimplifiedLayerNormalization": 1 + layers * norms_beside_sums(spec),
        "FastGelu": layers,
        # query, key, value, output, gate, up, down; the head; scores, and the values that they weigh
        "FusedMatMul": 7 * layers + 1 + 2 * parts,
    }
    check_counts("directml", model, layers, expected)
    for node in model.graph:
        dtype, version = main_dtype("directml", node), _version(node)
        if not supported(node.domain, node.op_type, dtype, version):
            raise PassError(
                f"target directml: no kernel for {node.op_type}-{version} ({dtype}) of {node.name}",
                hint="targets/directml_support.py cites the provider's kernels. Report this with --debug.",
            )


def _version(node: ir.Node) -> int:
    """The version of a node's operator in the graph's opset."""
    if node.domain or node.op_type in _VERSION_1:
        return 1
    import onnx

    return int(onnx.defs.get_schema(node.op_type, OPSET_CEILING, "").since_version)


def _stored_tensors(
    shapes: Mapping[str, tuple[int, ...]], spec: DecoderSpec
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The data file's tensors: the checkpoint's own (norms as gains), and the rotary tables."""
    return (*shapes.items(), *rotary_tensors(spec, computed=spec.computes_rotary))


DIRECTML = Target(
    name="directml",
    opset=OPSET_CEILING,
    cache_layout="compacted",
    providers=_PROVIDERS,
    # without it: "head_size must be a multiple of 8" (CPU provider, 1.32)
    head_dim_multiple=8,
    chunks="none",
    lower=_lower,
    settle=_settle,
    finish=_finish,
    compat=None,
    static=None,
    check=_check,
    stored_tensors=_stored_tensors,
    with_functions=None,
)
