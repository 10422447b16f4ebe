"""Numbers and attributes in the graphs that follow from config.json: a wrong one often drifts by too little to see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gemma_validation.structure.attention_parts import PRODUCTS
from gemma_validation.structure.facts import FolderFacts, attribute, float32_of, layer_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["embedding_scale", "gelus", "products", "soft_cap"]


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
            found = [float(float32_of(tensor).reshape(-1)[0]) for tensor in factors if tensor.size == 1]
            if len(found) != 1 or not _holds(factors[0], exact):
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
    """Matrix products take the weight as the checkpoint has it, rows as outputs, and multiply by nothing else.

    Products of two activations are the attention's, which `attention` looks at.
    """
    expected = {"transA": 0, "transB": 1, "transBatchA": 0, "transBatchB": 0, "alpha": 1.0}
    others = {f"model.layers.{layer}.{name}" for layer in facts.by_parts for name in PRODUCTS}
    for graph, model in facts.graphs:
        for node in model.graph:
            if node.op_type == "FusedMatMul" and node.outputs[0].name not in others:
                for name, value in expected.items():
                    if attribute(node, name, 0 if name != "alpha" else 1.0) != value:
                        yield f"{graph.file}, {node.name}: {name} is {attribute(node, name)}, expected {value}"
            # stored blocks are transposed in three dimensions, a matrix in two
            if node.op_type == "Transpose" and list(attribute(node, "perm", [1, 0])) == [0, 1]:
                yield f"{graph.file}, {node.name}: perm is {attribute(node, 'perm')}, expected [1, 0]"


def soft_cap(facts: FolderFacts) -> Iterator[str]:
    """Logits are soft-capped once, behind the head and at config.json's bound, or not at all."""
    cap = facts.spec.final_softcap
    for graph, model in facts.graphs:
        # those of a layer would be its attention's
        ends = [node for node in model.graph if layer_of(node.name) is None]
        bends = [node for node in ends if node.op_type in ("SoftCap", "Tanh")]
        if not cap:
            if bends:
                yield f"{graph.file}, {bends[0].name}: bends a value, expected no soft-capping"
            continue
        logits = next((value for value in model.graph.outputs if value.name == "logits"), None)
        node = None if logits is None else logits.producer()
        found = None if node is None or len(bends) != 1 else _bound(node, cap)
        if found is None:
            yield f"{graph.file}: logits are not {cap:g} * tanh(. / {cap:g}), the soft-capping that config.json has"
        elif found:
            yield f"{graph.file}, {bends[0].name}: the bound is {found}, expected {cap:g}"


def _bound(node: ir.Node, cap: float) -> str | None:
    """What is wrong with the bound of the soft-capping that a node ends, "" for nothing; None where it ends none."""
    if node.op_type == "SoftCap":
        found = attribute(node, "cap", 0.0)
        return "" if float(np.float32(found)) == float(np.float32(cap)) else str(found)
    bend = next((value.producer() for value in node.inputs if value is not None and value.const_value is None), None)
    divide = bend.inputs[0].producer() if bend is not None and bend.inputs[0] is not None else None
    if divide is None or [node.op_type, bend and bend.op_type, divide.op_type] != ["Mul", "Tanh", "Div"]:
        return None
    limits = [value.const_value for value in (divide.inputs[1], *node.inputs) if value is not None]
    tensors = [tensor for tensor in limits if tensor is not None and tensor.size == 1]
    wrong = [float(float32_of(tensor).reshape(-1)[0]) for tensor in tensors if not _holds(tensor, cap)]
    return None if len(tensors) != 2 else " and ".join(f"{number:g}" for number in wrong)


def _holds(tensor: ir.TensorProtocol, exact: float) -> bool:
    return float(float32_of(tensor).reshape(-1)[0]) in _rounded(exact, tensor)


def _rounded(exact: float, like: ir.TensorProtocol) -> set[float]:
    """A number in a tensor's type, directly or by way of float32, where the exporter keeps it."""
    dtype = np.asarray(like.numpy()).dtype
    return {float(np.asarray(value).astype(dtype)) for value in (np.float64(exact), np.float32(exact))}
