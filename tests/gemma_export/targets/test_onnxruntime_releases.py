"""The first onnxruntime release that loads a graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from graphs import LAYERS, SPEC, semantic_model, value
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from gemma_export.errors import PassError
from gemma_export.passes import QuantiseCache
from gemma_export.passes.semantic_nodes import nodes_of
from gemma_export.precision import PRECISIONS
from gemma_export.targets import TARGETS
from gemma_export.targets.onnxruntime_releases import _ATTRIBUTES, _INPUTS, first_release


def _finished() -> ir.Model:
    model = semantic_model()
    TARGETS["ort"].lower(model)
    TARGETS["ort"].finish(model, 1)
    return model


def _attention(model: ir.Model) -> list[ir.Node]:
    nodes = nodes_of(model, "GroupQueryAttention", "com.microsoft")
    assert len(nodes) == LAYERS
    return nodes


def _with_inputs(count: int) -> ir.Model:
    """An ort graph whose attention reads its first `count` inputs, nothing between the ninth and the last."""
    model = _finished()
    for node in _attention(model):
        lengths = node.inputs[-1]
        node.replace_input_with(len(node.inputs) - 1, None)
        if count > 9:
            node.resize_inputs(max(count, len(node.inputs)))
            node.replace_input_with(count - 1, lengths)
    return model


def test_an_ort_graph_needs_query_seqlens() -> None:
    assert first_release(_finished()) == "1.32.0"


@pytest.mark.parametrize(
    ("count", "release"),
    [(9, "1.20.0"), (10, "1.22.0"), (11, "1.22.0"), (12, "1.23.0"), (14, "1.25.0"), (16, "1.28.0"), (17, "1.32.0")],
)
def test_fewer_inputs_load_earlier(count: int, release: str) -> None:
    assert first_release(_with_inputs(count)) == release


def test_the_latest_need_decides() -> None:
    model = _with_inputs(9)
    _attention(model)[-1].replace_input_with(11, value(model, "rows.query_seqlens"))
    assert first_release(model) == "1.23.0"


@pytest.mark.parametrize(("opset", "release"), [(21, "1.20.0"), (23, "1.23.0"), (24, "1.24.1")])
def test_opset(opset: int, release: str) -> None:
    model = _with_inputs(9)
    model.graph.opset_imports[""] = opset
    assert first_release(model) == release


def test_an_attribute_can_need_more_than_the_inputs() -> None:
    model = _with_inputs(9)
    _attention(model)[0].attributes["sliding_window_cache"] = ir.AttrInt64("sliding_window_cache", 1)
    assert first_release(model) == "1.29.0"


@pytest.mark.parametrize(("activations", "release"), [("fp32", "1.28.0"), ("fp16", "1.29.0")])
def test_an_int8_cache_needs_a_kernel_that_is_right(activations: str, release: str) -> None:
    """The schemas have it since 1.25."""
    model = _with_inputs(9)
    PRECISIONS[activations].apply(model)
    names = [state.name for node in _attention(model) for state in node.inputs[3:5]]
    QuantiseCache({name: np.ones((1, SPEC.num_key_value_heads, 1, SPEC.head_dim), np.float32) for name in names})(model)
    assert first_release(model) == release


def test_refuses_an_int8_cache_that_nobody_ran() -> None:
    model = _with_inputs(9)
    PRECISIONS["bf16"].apply(model)
    _attention(model)[0].attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
    with pytest.raises(PassError, match="recorded for an int8 cache under BFLOAT16 activations"):
        first_release(model)


def test_refuses_an_unknown_opset() -> None:
    model = _finished()
    model.graph.opset_imports[""] = 99
    with pytest.raises(PassError, match="no onnxruntime release is recorded for opset 99"):
        first_release(model)


def test_refuses_an_unknown_operator() -> None:
    model = _finished()
    model.graph.append(ir.node("FusedGemm", inputs=[], domain="com.microsoft", name="odd"))
    with pytest.raises(PassError, match="no onnxruntime release is recorded for FusedGemm"):
        first_release(model)


def test_refuses_an_unknown_attribute() -> None:
    model = _finished()
    _attention(model)[0].attributes["smooth_softmax"] = ir.AttrInt64("smooth_softmax", 1)
    with pytest.raises(PassError, match="recorded for attribute smooth_softmax of GroupQueryAttention"):
        first_release(model)


def test_refuses_an_unknown_input() -> None:
    with pytest.raises(PassError, match="recorded for input 18 of GroupQueryAttention"):
        first_release(_with_inputs(18))


@pytest.mark.parametrize("op_type", sorted(_INPUTS))
def test_the_table_agrees_with_the_installed_schemas(op_type: str) -> None:
    installed = tuple(int(part) for part in onnxruntime.__version__.split(".")[:3])
    (schema,) = [
        schema for schema in get_all_operator_schema() if (schema.domain, schema.name) == ("com.microsoft", op_type)
    ]
    known = [count for count, release in _INPUTS[op_type].items() if release <= installed]
    assert max(known) <= len(schema.inputs)
    attributes = {name for name, release in _ATTRIBUTES[op_type].items() if release <= installed}
    assert attributes <= set(schema.attributes)
