"""The helpers of the passes: finding, naming and replacing."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from graphs import LAYERS, find, semantic_model, tap, value

from gemma_export.errors import PassError
from gemma_export.passes.semantic_nodes import (
    DOMAIN,
    drop_unused_initializers,
    insert_before,
    int64_constant,
    nodes_of,
    replace,
    value_named,
    weight_value,
)
from gemma_export.weights import Transpose, WeightTensor


def test_domain_is_the_operators_own() -> None:
    """Passes are torch-free and so repeat the name."""
    from gemma_export.ops import DOMAIN as OPS_DOMAIN

    assert DOMAIN == OPS_DOMAIN


def test_nodes_are_found_by_domain_and_in_order() -> None:
    model = semantic_model()
    names = [str(node.name) for node in nodes_of(model, "Attention")]
    assert names == [f"model.layers.{layer}.self_attn.Attention" for layer in range(LAYERS)]
    assert nodes_of(model, "Attention", "") == []


@pytest.mark.parametrize("name", ["attention_mask", "layers.1.attn_residual"])
def test_inputs_and_node_outputs_have_names(name: str) -> None:
    assert value_named(semantic_model().graph, name).name == name


def test_an_initializer_is_no_value_of_a_node() -> None:
    with pytest.raises(PassError, match="no value called 'cos_cache' in the graph"):
        value_named(semantic_model().graph, "cos_cache")


def test_constants_are_shared_by_name() -> None:
    graph = semantic_model().graph
    scalar, vector = int64_constant(graph, "constant.3", 3), int64_constant(graph, "constant.[3]", [3])
    assert (scalar.shape, vector.shape) == ([], [1])
    assert scalar.const_value is not None
    assert scalar.const_value.numpy() == 3
    assert int64_constant(graph, "constant.3", 3) is scalar


def test_weights_are_shared_by_name() -> None:
    graph = semantic_model().graph
    stored = graph.initializers["model.embed_tokens.weight"].const_value
    assert isinstance(stored, WeightTensor)
    first = weight_value(graph, "transposed", Transpose(stored.weight), ir.DataType.FLOAT)
    assert weight_value(graph, "transposed", Transpose(stored.weight), ir.DataType.FLOAT) is first
    assert first.shape == stored.weight.shape[::-1]


def test_unused_initializers_go_unless_they_are_outputs() -> None:
    graph = semantic_model().graph
    before = set(graph.initializers)
    unused, output = (ir.Value(name=name, const_value=ir.tensor([1])) for name in ("unused", "output"))
    graph.register_initializer(unused)
    graph.register_initializer(output)
    graph.outputs.append(output)
    drop_unused_initializers(graph)
    assert set(graph.initializers) == before | {"output"}


def test_replacement_takes_over_name_shape_type_uses_and_graph_outputs() -> None:
    model = tap(semantic_model(), "layers.1.mlp_residual")
    old = find(model, "layers.1.mlp_residual")
    shape, users = old.outputs[0].shape, {node.name for node, _ in old.outputs[0].uses()}
    add = ir.node("Add", inputs=list(old.inputs), name="plain")
    replace(model.graph, old, [add], add.outputs)
    new = value(model, "layers.1.mlp_residual")
    assert new.producer() is add
    assert (new.shape, new.dtype) == (shape, ir.DataType.FLOAT)
    assert {node.name for node, _ in new.uses()} == users
    assert model.graph.outputs[-1] is new


def test_inserted_nodes_are_named_and_typed() -> None:
    model = semantic_model()
    anchor = find(model, "decoder.LastTokens")
    mask = value_named(model.graph, "attention_mask")
    tape = ir.tape.Tape()
    doubled = tape.op("Add", [mask, mask])
    same = tape.op("Equal", [doubled, mask])
    insert_before(model.graph, anchor, tape, "rows")
    assert (doubled.name, doubled.dtype) == ("rows.Add_0", ir.DataType.INT64)
    assert (same.name, same.dtype) == ("rows.Equal_1", ir.DataType.BOOL)
    names = [node.name for node in model.graph]
    assert names[names.index(anchor.name) - 2 : names.index(anchor.name)] == ["rows.Add_0", "rows.Equal_1"]
