"""The points of the residual stream keep their names and their numbers from tracing to the finished graph."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
from graphs import LAYERS, PADDINGS, batch, deviation, run_outputs, semantic_model, tap, value

from gemma_export.precision import PRECISIONS
from gemma_export.targets import TARGETS

_POINTS = [f"layers.{layer}.{part}_residual" for layer in range(LAYERS) for part in ("attn", "mlp")]


def _finished(model: ir.Model, precision: str = "fp32") -> ir.Model:
    TARGETS["ort"].lower(model)
    PRECISIONS[precision].apply(model)
    TARGETS["ort"].finish(model, 0)
    return model


@pytest.mark.parametrize("point", _POINTS)
def test_semantic_graph_has_every_point(point: str) -> None:
    producer = value(semantic_model(), point).producer()
    assert producer is not None
    assert (producer.op_type, producer.name) == ("ResidualAdd", point)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("point", _POINTS)
def test_finished_graph_has_every_point(point: str, precision: str) -> None:
    found = value(_finished(semantic_model(), precision), point)
    producer = found.producer()
    assert producer is not None
    assert producer.op_type == "SkipSimplifiedLayerNormalization"
    assert found.index() == 3
    assert found.dtype == {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}[precision]


def _real(rows: np.ndarray, padding: str, *, aligned: bool) -> np.ndarray:
    """The real tokens' rows; the finished graph has them at the start of each row."""
    lengths = [columns.stop - columns.start for columns in PADDINGS[padding]]
    columns = [slice(0, length) for length in lengths] if aligned else PADDINGS[padding]
    return np.concatenate([rows[row, part] for row, part in enumerate(columns)])


@pytest.mark.parametrize("when", ["before lowering", "after lowering"])
@pytest.mark.parametrize("padding", sorted(PADDINGS))
def test_tapped_numbers_are_the_same(padding: str, when: str) -> None:
    expected = run_outputs(tap(semantic_model(), *_POINTS), _POINTS, *batch(padding))
    if when == "before lowering":
        finished = _finished(tap(semantic_model(), *_POINTS))
    else:
        finished = tap(_finished(semantic_model()), *_POINTS)
    assert [tensor.name for tensor in finished.graph.outputs[-len(_POINTS) :]] == _POINTS
    found = run_outputs(finished, _POINTS, *batch(padding))
    for after, before in zip(found, expected, strict=True):
        real = _real(before, padding, aligned=False)
        assert deviation(_real(after, padding, aligned=True), real) <= tolerances.FP32_LOGITS


def test_points_differ_from_one_another() -> None:
    """Else the comparison above could not tell them apart."""
    taps = run_outputs(tap(semantic_model(), *_POINTS), _POINTS, *batch("none"))
    for first, second in itertools.pairwise(taps):
        assert deviation(first, second) > 0.1
