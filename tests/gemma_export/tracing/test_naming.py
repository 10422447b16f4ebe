"""Names of nodes, values and initializers: module paths and checkpoint tensors."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from graphs import GEMMA, SPEC, UNTIED, find, semantic_model, traced_model

from gemma_export.errors import TracingError
from gemma_export.ops.residual_add import POINT
from gemma_export.tracing.naming import name_values

_SCOPES = "pkg.torch.onnx.name_scopes"


def test_nodes_are_named_after_their_modules() -> None:
    names = [str(node.name) for node in traced_model().graph]
    layer = [name.removeprefix("model.layers.1.") for name in names if "layers.1." in name]
    assert layer == [
        "input_layernorm.RMSNorm",
        "self_attn.q_proj.Linear",
        "self_attn.k_proj.Linear",
        "self_attn.v_proj.Linear",
        "self_attn.Attention",
        "self_attn.o_proj.Linear",
        "layers.1.attn_residual",
        "post_attention_layernorm.RMSNorm",
        "mlp.gate_proj.Linear",
        "mlp.up_proj.Linear",
        "mlp.GeGLU",
        "mlp.down_proj.Linear",
        "layers.1.mlp_residual",
    ]
    assert names[0] == "model.embed_tokens.ScaledEmbedding"
    assert names[-3:] == ["model.norm.RMSNorm", "decoder.LastTokens", "lm_head.Linear"]


def test_values_are_named_after_their_nodes() -> None:
    model = traced_model()
    interface = {output.name for output in model.graph.outputs}
    inner = [output for node in model.graph for output in node.outputs if output.name not in interface]
    assert len(inner) == len(list(model.graph)) - 1
    for output in inner:
        producer = output.producer()
        assert producer is not None
        assert output.name == producer.name


@pytest.mark.parametrize("spec", [SPEC, UNTIED], ids=["tied", "untied"])
def test_initializers_are_the_checkpoints_tensors_and_the_rotary_tables(spec: object) -> None:
    initializers = semantic_model(spec).graph.initializers  # type: ignore[arg-type]
    assert set(initializers) == {*GEMMA.tensor_shapes(spec), "cos_cache", "sin_cache"}  # type: ignore[arg-type]
    assert {name: tensor.name for name, tensor in initializers.items()} == {name: name for name in initializers}


def _node(scopes: list[str], inputs: list[ir.Value], **metadata: str) -> ir.Node:
    return ir.Node(
        "gemma", "Linear", inputs, metadata_props={_SCOPES: str(scopes), **metadata}, num_outputs=1, name="node_7"
    )


def _model(*nodes: ir.Node) -> ir.Model:
    source = nodes[0].inputs[0]
    assert source is not None
    graph = ir.Graph([source], list(nodes[-1].outputs), nodes=nodes, opset_imports={"": 23, "gemma": 1})
    return ir.Model(graph, ir_version=10)


def test_two_values_of_one_name_are_an_error() -> None:
    source = ir.Value(name="x")
    first = _node(["decoder", "decoder.mlp", "linear"], [source])
    second = _node(["decoder", "decoder.mlp", "linear_1"], [first.outputs[0]])
    last = _node(["decoder", "decoder.head", "linear_2"], [second.outputs[0]])
    with pytest.raises(TracingError, match=r"traced values share names: mlp\.Linear"):
        name_values(_model(first, second, last))


def test_a_point_overrules_the_module_path() -> None:
    source = ir.Value(name="x")
    first = _node(["decoder", "decoder.layers.0", "add"], [source], **{POINT: "layers.0.attn_residual"})
    last = _node(["decoder", "decoder.head", "linear"], [first.outputs[0]])
    last.outputs[0].name = "logits"
    model = _model(first, last)
    name_values(model)
    assert find(model, "layers.0.attn_residual").outputs[0].name == "layers.0.attn_residual"
    # the interface keeps its own names
    assert find(model, "head.Linear").outputs[0].name == "logits"
    assert not any(node.metadata_props for node in model.graph)
