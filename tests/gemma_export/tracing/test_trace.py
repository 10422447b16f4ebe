"""The traced graph: semantic nodes, the contract's interface, function bodies, the same bytes every time."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from pathlib import Path

import onnx
import onnx.inliner
import onnx_ir as ir
import pytest
import torch
from graphs import (
    GEMMA,
    POST_NORM,
    QK_NORM,
    SPEC,
    UNTIED,
    ArraySource,
    random_arrays,
    semantic_model,
    serialize,
    traced_model,
)

from gemma_export.config import DecoderSpec
from gemma_export.errors import TracingError
from gemma_export.families import FAMILIES
from gemma_export.ops import DOMAIN, SEMANTIC_OPS
from gemma_export.tracing import bind_weights, trace_decoder

# seven projections, two norms, two sums, attention, GeGLU; a norm behind each branch; norms of query and key heads
_A_LAYER = Counter({"Linear": 7, "RMSNorm": 2, "ResidualAdd": 2, "Attention": 1, "GeGLU": 1})
_POST_NORM_LAYER = _A_LAYER + Counter({"RMSNorm": 2})
_QK_NORM_LAYER = _POST_NORM_LAYER + Counter({"HeadNorm": 2})
_AROUND = Counter({"ScaledEmbedding": 1, "RMSNorm": 1, "LastTokens": 1, "Linear": 1})


def test_every_node_is_semantic() -> None:
    """Nothing of the tracer is left, not even shape arithmetic."""
    assert {node.domain for node in traced_model().graph} == {DOMAIN}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(
    ("spec", "layer", "around"),
    [
        (SPEC, _A_LAYER, _AROUND),
        (POST_NORM, _POST_NORM_LAYER, _AROUND + Counter({"SoftCap": 1})),
        (QK_NORM, _QK_NORM_LAYER, _AROUND),
    ],
    ids=["gemma", "gemma2", "gemma3"],
)
def test_exact_nodes_of_a_layer(spec: DecoderSpec, layer: Counter[str], around: Counter[str], layers: int) -> None:
    # the first layer has a window, if the family knows such
    windows = (spec.windows[0], *spec.windows[1:] * layers)[:layers]
    spec = dataclasses.replace(spec, num_hidden_layers=layers, windows=windows)
    model = trace_decoder(FAMILIES[spec.family], spec)
    expected = around + Counter({op_type: number * layers for op_type, number in layer.items()})
    assert Counter(node.op_type for node in model.graph) == expected
    scopes = Counter(str(node.name).split(".")[2] for node in model.graph if "model.layers." in str(node.name))
    assert scopes == {str(index): layer.total() - 2 for index in range(layers)}


@pytest.mark.parametrize("spec", [SPEC, UNTIED], ids=["tied", "untied"])
def test_interface(spec: DecoderSpec) -> None:
    model = traced_model(spec)
    heads, head_dim = spec.num_key_value_heads, spec.head_dim
    past = ["batch_size", heads, "past_sequence_length", head_dim]
    present = ["batch_size", heads, "total_sequence_length", head_dim]
    kinds = [(layer, kind) for layer in range(spec.num_hidden_layers) for kind in ("key", "value")]
    assert [_signature(tensor) for tensor in model.graph.inputs] == [
        ("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"]),
        ("attention_mask", ir.DataType.INT64, ["batch_size", "total_sequence_length"]),
        *((f"past_key_values.{layer}.{kind}", ir.DataType.FLOAT, past) for layer, kind in kinds),
    ]
    assert [_signature(tensor) for tensor in model.graph.outputs] == [
        ("logits", ir.DataType.FLOAT, ["batch_size", "sequence_length", spec.vocab_size]),
        *((f"present.{layer}.{kind}", ir.DataType.FLOAT, present) for layer, kind in kinds),
    ]


def _signature(tensor: ir.Value) -> tuple[object, ...]:
    assert tensor.shape is not None
    return tensor.name, tensor.dtype, [dim if isinstance(dim, int) else dim.value for dim in tensor.shape]


def test_versions() -> None:
    model = traced_model()
    assert (model.ir_version, dict(model.graph.opset_imports)) == (10, {"": 23, DOMAIN: 1})
    assert (model.producer_name, model.producer_version) == ("gemma-export", None)


def test_function_bodies_of_exactly_the_operators_used() -> None:
    model = traced_model()
    used = {node.op_type for node in model.graph}
    assert {name for domain, name, _ in model.functions if domain == DOMAIN} == used
    assert len(model.functions) == len(used)
    for (_, name, _), function in model.functions.items():
        expected = ir.serde.serialize_function(SEMANTIC_OPS[name].function_ir())
        assert ir.serde.serialize_function(function) == expected


def test_an_operator_that_no_node_uses_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # its body cannot be had: it has none
    monkeypatch.setitem(SEMANTIC_OPS, "CausalConv1d", None)
    model = trace_decoder(GEMMA, dataclasses.replace(SPEC, num_hidden_layers=1, windows=(0,)))
    assert "CausalConv1d" not in {name for _, name, _ in model.functions}


def test_attributes_are_the_specification() -> None:
    model = traced_model()
    for node in model.graph:
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        expected = {
            "Attention": {
                "num_heads": SPEC.num_attention_heads,
                "kv_num_heads": SPEC.num_key_value_heads,
                "scale": SPEC.attention_scale,
                "softcap": 0.0,
                "window": 0,
            },
            "RMSNorm": {"epsilon": pytest.approx(SPEC.rms_norm_eps), "gain_scale": 1.0},
            "ScaledEmbedding": {"scale": pytest.approx(SPEC.hidden_size**0.5)},
            "LastTokens": {"keep": 0},
        }
        assert attributes == expected.get(node.op_type, {}), node.name


def test_checker_accepts_the_semantic_model() -> None:
    proto = onnx.load_from_string(serialize(semantic_model()))
    onnx.checker.check_model(proto)
    # the bodies alone, without our domain, are a portable graph with types that infer
    portable = onnx.inliner.inline_local_functions(proto)
    assert {node.domain for node in portable.graph.node} <= {"", "ai.onnx"}
    onnx.checker.check_model(portable, full_check=True)


def test_no_path_of_this_machine() -> None:
    content = serialize(semantic_model())
    for secret in (b"/home", b"site-packages", b".py", str(Path.cwd()).encode(), str(Path.home()).encode() + b"/"):
        assert secret not in content
    assert b"gemma-export" in content


def test_no_metadata_of_the_tracer() -> None:
    model = traced_model()
    for part in (model, model.graph, *model.graph, *model.graph.inputs, *model.graph.initializers.values()):
        assert not part.metadata_props
        assert not part.doc_string


def test_tracing_twice_gives_the_same_bytes() -> None:
    """Two processes are compared by the command line's tests."""
    assert serialize(_bound(trace_decoder(GEMMA, SPEC))) == serialize(_bound(trace_decoder(GEMMA, SPEC)))


def _bound(model: ir.Model) -> ir.Model:
    bind_weights(model, GEMMA, SPEC, ArraySource(random_arrays()))
    return model


def test_tracing_prints_nothing_and_leaves_logging_alone(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    trace_decoder(GEMMA, dataclasses.replace(SPEC, num_hidden_layers=1, windows=(0,)))
    assert capfd.readouterr() == ("", "")
    assert logger.level == level
    assert not torch.compiler.is_exporting()


class _Branching(torch.nn.Module):
    """Python control flow on data cannot be captured."""

    def forward(self, x: torch.Tensor, context: object, past: object) -> tuple[torch.Tensor, object]:
        return (x if x.sum() > 0 else -x), past


def test_what_cannot_be_captured_is_an_error_of_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def build(spec: DecoderSpec) -> torch.nn.Module:
        decoder = GEMMA.build(spec)
        decoder.model.layers[1] = _Branching()
        return decoder

    broken = dataclasses.replace(GEMMA, build=build)
    with pytest.raises(
        TracingError, match=rf"torch {torch.__version__.split('+')[0]}.* could not capture the gemma"
    ) as caught:
        trace_decoder(broken, SPEC)
    assert "\n" not in caught.value.message
    # torch's own explanation is kept for --debug, its dump of the graph is not shown
    assert "\n" in str(caught.value.__cause__)
    out, err = capfd.readouterr()
    assert out == ""
    assert "def forward" not in err
