"""Numbers and attributes in the graphs that follow from config.json: a wrong one often drifts by too little to see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemma_export.config import DecoderSpec
from gemma_validation.structure.facts import FolderFacts, attribute, layer_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["attention", "embedding_scale", "epsilons", "gelus", "products", "rotary_nodes", "rotary_tables"]

_NORMS = frozenset({"RMSNorm", "RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"})
_ATTENTION = frozenset({"Attention", "GroupQueryAttention"})
# (domain, operator) -> where the rotary tables come in: cosine, sine
_TABLES = {
    ("com.microsoft", "GroupQueryAttention"): (7, 8),
    ("com.microsoft", "RotaryEmbedding"): (2, 3),
    ("", "RotaryEmbedding"): (1, 2),
    ("gemma", "Attention"): (6, 7),
}
# Half a unit in the last place of a number up to 1: what storing a cosine costs
_ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# relative error of a float32 angle: its frequency theta^-e has that of e, 2^-24, times ln(theta) * e, up to 10
_ANGLE_ERROR = 1e-6
# rows of a table that are compared at once: in float64 a long context's would take hundreds of megabytes
_ROWS = 8192


def epsilons(facts: FolderFacts) -> Iterator[str]:
    """Every norm adds config.json's epsilon; times 2^-2k where the residual stream is scaled by 2^-k."""
    factor = np.float32(2.0**-facts.residual_shift)
    expected = float(np.float32(facts.spec.rms_norm_eps) * factor * factor)
    for graph, model in facts.graphs:
        for node in model.graph:
            if node.op_type in _NORMS:
                found = attribute(node, "epsilon")
                # stored as float32: exact
                if found is None or float(np.float32(found)) != expected:
                    yield f"{graph.file}, {node.name}: epsilon is {found}, expected {expected}"
                if attribute(node, "axis", -1) != -1 or attribute(node, "stash_type", 1) != 1:
                    yield f"{graph.file}, {node.name}: expected statistics of the last axis in float32"


def attention(facts: FolderFacts) -> Iterator[str]:
    """Heads, scale, softcap and window of every layer."""
    for graph, model in facts.graphs:
        nodes = [node for node in model.graph if node.op_type in _ATTENTION]
        layers = [layer_of(node.name) for node in nodes]
        if layers != list(range(facts.spec.num_hidden_layers)):
            yield f"{graph.file}: attention of layers {layers}, expected 0 to {facts.spec.num_hidden_layers - 1}"
        for node in nodes:
            for name, (found, expected) in _attention_numbers(node, facts.spec).items():
                if found != expected:
                    yield f"{graph.file}, {node.name}: {name} is {found}, expected {expected}"


def rotary_nodes(facts: FolderFacts) -> Iterator[str]:
    """Rotary embedding of every layer reads the cosine as cosine and the sine as sine, in halves, with its heads."""
    spec = facts.spec
    for graph, model in facts.graphs:
        for node in model.graph:
            places = _TABLES.get((node.domain, node.op_type))
            if places is None or (node.op_type == "GroupQueryAttention" and not attribute(node, "do_rotary", 0)):
                continue
            inputs = [value.name if value is not None else None for value in node.inputs]
            found = [inputs[place] if place < len(inputs) else None for place in places]
            if found != ["cos_cache", "sin_cache"]:
                yield f"{graph.file}, {node.name}: its tables are {found}, expected cos_cache, sin_cache"
            if attribute(node, "interleaved", attribute(node, "rotary_interleaved", 0)) != 0:
                yield f"{graph.file}, {node.name}: interleaved, expected halves"
            heads = spec.num_key_value_heads if ".key_rotary" in str(node.name) else spec.num_attention_heads
            if (node.domain, node.op_type) == ("", "RotaryEmbedding") and attribute(node, "num_heads") != heads:
                yield f"{graph.file}, {node.name}: num_heads is {attribute(node, 'num_heads')}, expected {heads}"


def rotary_tables(facts: FolderFacts) -> Iterator[str]:
    """The tables hold cosine and sine of position * rope_theta^(-2i / head_dim)."""
    graph, model = facts.main
    half = facts.spec.head_dim // 2
    frequencies = facts.spec.rotary.theta ** (-np.arange(half, dtype=np.float64) / half)
    for name, function in (("cos_cache", np.cos), ("sin_cache", np.sin)):
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            yield f"{graph.file}: no {name}"
            continue
        table, tensor = _float32(value.const_value), value.const_value
        if table.shape != (facts.manifest.context_length, half):
            yield f"{graph.file}, {name}: {table.shape}, expected {(facts.manifest.context_length, half)}"
            continue
        rounding = 2 * _ROUNDING.get({"FLOAT": "float32"}.get(tensor.dtype.name, tensor.dtype.name.lower()), 0.0)
        for first in range(0, len(table), _ROWS):
            angles = np.arange(first, min(first + _ROWS, len(table)))[:, None] * frequencies
            wrong = np.argwhere(
                ~(np.abs(table[first : first + _ROWS] - function(angles)) <= rounding + angles * _ANGLE_ERROR)
            )
            if len(wrong):
                position, index = first + int(wrong[0][0]), int(wrong[0][1])
                yield (
                    f"{graph.file}, {name}: {table[position, index]:.6g} at position {position}, frequency {index}, "
                    f"expected {function(position * frequencies[index]):.6g} for rope_theta {facts.spec.rotary.theta:g}"
                )
                break


def embedding_scale(facts: FolderFacts) -> Iterator[str]:
    """Embeddings are multiplied by sqrt(hidden_size) in the activations' type, exactly; times 2^-k."""
    exact = facts.spec.hidden_size**0.5 * 2.0**-facts.residual_shift
    for graph, model in facts.graphs:
        node = next(
            (
                node
                for node in model.graph
                if any(output.name == "model.embed_tokens.ScaledEmbedding" for output in node.outputs)
            ),
            None,
        )
        if node is None or node.op_type not in ("Mul", "ScaledEmbedding"):
            yield f"{graph.file}: the embedding is not scaled, expected a factor {exact:.9g}"
        elif node.op_type == "ScaledEmbedding":
            if float(np.float32(attribute(node, "scale", 0.0))) != float(np.float32(exact)):
                yield f"{graph.file}: the embedding's factor is {attribute(node, 'scale')}, expected {exact:.9g}"
        else:
            factors = [
                value.const_value for value in node.inputs if value is not None and value.const_value is not None
            ]
            found = [float(_float32(tensor).reshape(-1)[0]) for tensor in factors if tensor.size == 1]
            if len(found) != 1 or found[0] not in _rounded(exact, factors[0]):
                yield f"{graph.file}, {node.name}: the embedding's factor is {found}, expected {exact:.9g}"


def gelus(facts: FolderFacts) -> Iterator[str]:
    """The tanh form of GELU in every layer."""
    for graph, model in facts.graphs:
        layers = []
        for node in model.graph:
            if node.op_type in ("FastGelu", "GeGLU", "Gelu"):
                layers.append(layer_of(node.name))
                if node.op_type == "Gelu" and attribute(node, "approximate", "none") != "tanh":
                    yield f"{graph.file}, {node.name}: approximate is {attribute(node, 'approximate')}, expected tanh"
        if layers != list(range(facts.spec.num_hidden_layers)):
            yield f"{graph.file}: GELU in layers {layers}, expected 0 to {facts.spec.num_hidden_layers - 1}"
        for function in model.functions.values():
            for node in function:
                if node.op_type == "Gelu" and attribute(node, "approximate", "none") != "tanh":
                    yield f"{graph.file}, function {function.name}: GELU without the tanh form"


def products(facts: FolderFacts) -> Iterator[str]:
    """Matrix products take the weight as the checkpoint has it, rows as outputs, and multiply by nothing else."""
    expected = {"transA": 0, "transB": 1, "transBatchA": 0, "transBatchB": 0, "alpha": 1.0}
    for graph, model in facts.graphs:
        for node in model.graph:
            if node.op_type == "FusedMatMul":
                for name, value in expected.items():
                    if attribute(node, name, 0 if name != "alpha" else 1.0) != value:
                        yield f"{graph.file}, {node.name}: {name} is {attribute(node, name)}, expected {value}"
            # stored blocks are transposed in three dimensions, a matrix in two
            if node.op_type == "Transpose" and list(attribute(node, "perm", [1, 0])) == [0, 1]:
                yield f"{graph.file}, {node.name}: perm is {attribute(node, 'perm')}, expected [1, 0]"


def _attention_numbers(node: ir.Node, spec: DecoderSpec) -> dict[str, tuple[Any, Any]]:
    """Attribute -> what it is, and what it should be. Gemma 1 has neither softcap nor window."""
    heads = "q_num_heads" if (node.domain, node.op_type) == ("", "Attention") else "num_heads"
    # stored as float32
    scale = attribute(node, "scale")
    return {
        heads: (attribute(node, heads), spec.num_attention_heads),
        "kv_num_heads": (attribute(node, "kv_num_heads"), spec.num_key_value_heads),
        "scale": (None if scale is None else float(np.float32(scale)), float(np.float32(spec.attention_scale))),
        "softcap": (attribute(node, "softcap", 0.0), 0.0),
        "window": (max(0, attribute(node, "local_window_size", attribute(node, "window", 0))), 0),
        "is_causal": (attribute(node, "causal", 1), 1),
    }


def _float32(tensor: ir.TensorProtocol) -> npt.NDArray[np.float32]:
    array: npt.NDArray[Any] = np.asarray(tensor.numpy())
    return array.astype(np.float32)


def _rounded(exact: float, like: ir.TensorProtocol) -> set[float]:
    """A number in a tensor's type, directly or by way of float32, where the exporter keeps it."""
    dtype = np.asarray(like.numpy()).dtype
    return {float(np.asarray(value).astype(dtype)) for value in (np.float64(exact), np.float32(exact))}
