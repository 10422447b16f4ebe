"""The transposed parts hold the numbers of the untransposed ones, in the element types of ONNX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graphs import ArraySource

from gemma_export.precision.block_codes import BlockCodes, dequantise
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.quantised_weight import QuantisedWeight
from gemma_export.precision.quantisers import QUANTISERS
from gemma_export.precision.transposed_weight import TransposedWeight
from gemma_export.weights import Cast, Stored

_SHAPES = [(40, 72), (7, 33), (6, 64), (1, 1)]


def _matrix(shape: tuple[int, int], layout: BlockFormat, dtype: torch.dtype = torch.float32) -> QuantisedWeight:
    array = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    weight = Cast(Stored(ArraySource({"w": array}), "w"), torch.float32)
    return QuantisedWeight(weight, "w", layout, dtype, QUANTISERS["rtn"].prepare("w", layout, dtype))


def _layout(bits: int, symmetric: bool) -> BlockFormat:
    return BlockFormat(bits=bits, block_size=32, symmetric=symmetric, transposed=True)


def _expected(matrix: QuantisedWeight) -> np.ndarray:
    parts = list(matrix.codes())
    zero_points = None if parts[0].zero_points is None else torch.cat([part.zero_points for part in parts])
    codes = BlockCodes(
        data=torch.cat([part.data for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zero_points=zero_points,
    )
    return dequantise(codes, matrix.layout).numpy()[:, : matrix.columns]


@pytest.mark.parametrize("stripe", [1, 100, 1 << 20])
@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_values_by_the_rule_of_dequantize_linear(
    bits: int, symmetric: bool, shape: tuple[int, int], stripe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemma_export.precision.transposed_weight._STRIPE_BYTES", stripe)
    blocks = _matrix(shape, _layout(bits, symmetric))
    matrix = TransposedWeight(blocks)
    data, scales = matrix.data.numpy().astype(np.float32), matrix.scales.numpy()
    block = np.arange(shape[1]) // 32
    zero_points = 0.0 if matrix.zero_points is None else matrix.zero_points.numpy().astype(np.float32)[block]
    np.testing.assert_array_equal(((data - zero_points) * scales[block]).T, _expected(blocks))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", _SHAPES)
def test_sizes_are_those_of_the_plan(bits: int, symmetric: bool, shape: tuple[int, int]) -> None:
    layout = _layout(bits, symmetric)
    matrix = TransposedWeight(_matrix(shape, layout, torch.float16))
    parts = {"data": matrix.data, "scales": matrix.scales, "zero_points": matrix.zero_points}
    found = tuple((f"w.{name}", len(part.tobytes())) for name, part in parts.items() if part is not None)
    assert found == layout.stored("w", shape, 2)
    assert all(part.nbytes == size for part, (_, size) in zip(parts.values(), found, strict=False) if part is not None)


def test_a_table_reads_the_same_bytes() -> None:
    matrix = TransposedWeight(_matrix((40, 64), _layout(4, False)))
    assert matrix.table.weight is matrix.data.weight
    assert matrix.table_scales.weight is matrix.scales.weight
    assert matrix.table_zero_points is not None
    assert matrix.zero_points is not None
    assert matrix.table_zero_points.weight is matrix.zero_points.weight
    assert list(matrix.table.shape) == [64, 20]
    assert matrix.table.tobytes() == matrix.data.tobytes()
    assert matrix.table_zero_points.tobytes() == matrix.zero_points.tobytes()


def test_parts_written_behind_one_another_are_those_written_alone() -> None:
    def parts() -> tuple[object, ...]:
        matrix = TransposedWeight(_matrix((40, 64), _layout(4, False)))
        return matrix.data, matrix.scales, matrix.zero_points

    together = [part.tobytes() for part in parts()]  # type: ignore[attr-defined]
    assert together == [parts()[index].tobytes() for index in range(3)]  # type: ignore[attr-defined]
