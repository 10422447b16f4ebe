"""int8 rows with a scale each: rounding, layout, and sums that no kernel clips."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from gemma_export.errors import NonFiniteError
from gemma_export.precision.row_weight import RowWeight, quantise_rows
from gemma_export.weights import Constant


def _matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 1), (5, 7), (300, 1030), (1, 4096)])
def test_parts_are_the_transposed_codes_and_their_scales(shape: tuple[int, int]) -> None:
    values = _matrix(*shape)
    weight = RowWeight(Constant(values, "w"), "w")
    codes, scales = quantise_rows(values)
    assert weight.data.shape.numpy() == shape[::-1]
    assert np.array_equal(weight.data.numpy(), codes.T.numpy())
    assert np.array_equal(weight.scales.numpy(), scales.numpy())
    # asked for alone, or in another order: the same bytes
    assert np.array_equal(RowWeight(Constant(values, "w"), "w").scales.numpy(), scales.numpy())
    assert (codes * scales[:, None] - values).abs().max() <= scales.max() * 0.5001


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_never_clip_int16(seed: int) -> None:
    """x86 without VNNI: two neighbours of 255 * code add up in int16."""
    rows = _matrix(64, 257, seed)
    rows[0, :2] = 1.0
    rows[1, 2:4] = -3.0
    rows[2] = 1.0
    codes, scales = quantise_rows(rows)
    pairs = codes[:, :256].reshape(64, 128, 2).int()
    assert pairs.clamp(min=0).sum(-1).max() * 255 <= 32767
    assert pairs.clamp(max=0).sum(-1).min() * 255 >= -32768
    # some row would have clipped with the plain scale
    plain = (rows / rows.abs().amax(1, keepdim=True) * 127).round()[:, :256].reshape(64, 128, 2)
    assert plain.clamp(min=0).sum(-1).max() * 255 > 32767
    assert (scales >= rows.abs().amax(1) / 127).all()


def test_a_lone_outlier_keeps_the_plain_scale() -> None:
    rows = torch.zeros(1, 6)
    rows[0, 3] = -2.54
    codes, scales = quantise_rows(rows)
    assert scales.item() == pytest.approx(0.02)
    assert codes[0].tolist() == [0, 0, 0, -127, 0, 0]


def test_zeros_and_subnormals_are_zeros() -> None:
    codes, scales = quantise_rows(torch.tensor([[0.0, 0.0], [1e-40, -1e-41], [1e-30, 0.0]]))
    assert codes[:2].abs().max() == 0
    assert scales[:2].tolist() == [0, 0]
    assert codes[2, 0] == 127


def test_the_source_is_read_once_for_both_parts() -> None:
    reads = []

    class Counted(Constant):
        def chunks(self):  # type: ignore[no-untyped-def]
            reads.append(1)
            yield from super().chunks()

    weight = RowWeight(Counted(_matrix(8, 8), "w"), "w")
    weight.data.tofile(io.BytesIO())
    weight.scales.tofile(io.BytesIO())
    assert len(reads) == 1
    assert weight.data.group is weight.scales.group


def test_a_scale_that_is_not_finite_is_named() -> None:
    values = _matrix(4, 4)
    values[2, 1:3] = 3e38
    values[2, 2] = torch.inf
    with pytest.raises(NonFiniteError, match="tensor w, row 2: its scale is not finite"):
        RowWeight(Constant(values, "w"), "w").data.numpy()
