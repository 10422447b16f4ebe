"""The second-order rule against GPTQ as its paper writes it, with an explicit inverse, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemma_export.errors import NonFiniteError
from gemma_export.precision import QUANTISERS
from gemma_export.precision.block_codes import dequantise
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.gptq import Gram, gptq

_ROWS, _COLUMNS = 24, 96
_LAYOUTS = [
    BlockFormat(bits=bits, block_size=block, symmetric=symmetric)
    for bits in (4, 8)
    for block in (32, 64)
    for symmetric in (True, False)
]


def _case() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and correlated inputs of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(_COLUMNS, _COLUMNS, generator=generator)
    sizes = torch.rand(_COLUMNS, generator=generator).mul(3).exp()
    inputs = torch.randn(400, _COLUMNS, generator=generator) @ mixing * sizes
    return torch.randn(_ROWS, _COLUMNS, generator=generator), inputs


def _quantised(weight: torch.Tensor, inputs: torch.Tensor, layout: BlockFormat) -> torch.Tensor:
    gram = Gram(_COLUMNS)
    for part in inputs.split(150):
        gram.add(part)
    codes = gptq(weight.t().contiguous(), gram.feedback("w"), layout, torch.float32)
    return dequantise(codes, layout)


@pytest.mark.parametrize("layout", _LAYOUTS, ids=str)
def test_errors_are_made_up_for_as_the_paper_does(layout: BlockFormat) -> None:
    """With the scales found, rounding column by column with the inverse's Cholesky factor gives the same codes."""
    weight, inputs = _case()
    gram = Gram(_COLUMNS)
    gram.add(inputs)
    codes = gptq(weight.t().contiguous(), gram.feedback("w", damping=0.01), layout, torch.float32)
    found = dequantise(codes, layout)[:, :_COLUMNS]
    zero_points = np.full(codes.scales.shape, float(layout.middle))
    if codes.zero_points is not None:
        packed = codes.zero_points.numpy()
        nibbles = packed if layout.bits == 8 else np.stack((packed & 15, packed >> 4), -1).reshape(_ROWS, -1)
        zero_points = nibbles[:, : codes.scales.shape[1]].astype(np.float64)
    moments = inputs.double().numpy().T @ inputs.double().numpy()
    diagonal = moments.diagonal().copy()
    np.fill_diagonal(moments, diagonal * (1 + 2.0**-12) + 0.01 * diagonal.mean())
    upper = np.linalg.cholesky(np.linalg.inv(moments)).T
    left, expected = weight.double().numpy(), np.zeros((_ROWS, _COLUMNS))
    for column in range(_COLUMNS):
        block = column // layout.block_size
        scale, zero_point = codes.scales[:, block].double().numpy(), zero_points[:, block]
        code = np.clip(np.round(left[:, column] / scale) + zero_point, 0, layout.top)
        expected[:, column] = (code - zero_point) * scale
        error = (left[:, column] - expected[:, column]) / upper[column, column]
        left[:, column:] -= error[:, None] * upper[column, column:]
    # a value next to the middle of two codes may round the other way in float32 and take its row's rest with it
    same = np.isclose(found.numpy(), expected, atol=1e-5).all(1)
    assert same.mean() >= 0.75 if layout.bits == 4 else same.mean() >= 0.5


@pytest.mark.parametrize("layout", _LAYOUTS, ids=str)
def test_the_outputs_error_is_smaller_than_with_search(layout: BlockFormat) -> None:
    weight, inputs = _case()
    plain = dequantise(QUANTISERS["search"].prepare("w", layout, torch.float32)(weight), layout)[:, :_COLUMNS]
    found = _quantised(weight, inputs, layout)
    assert not found[:, _COLUMNS:].any()
    errors = [((result - weight) @ inputs.T).square().mean() for result in (found[:, :_COLUMNS], plain)]
    assert errors[0] < 0.7 * errors[1]


def test_inputs_that_are_never_seen_are_rounded_plainly() -> None:
    weight, inputs = _case()
    layout = _LAYOUTS[0]
    found = _quantised(weight, torch.zeros_like(inputs), layout)
    plain = dequantise(QUANTISERS["search"].prepare("w", layout, torch.float32)(weight), layout)
    # equal weights of all columns, times a factor: the sums round differently
    torch.testing.assert_close(found, plain)


def test_wide_moments_are_made_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them narrower than the others."""
    _, inputs = _case()
    factors = []
    for strip in (_COLUMNS, 40):
        monkeypatch.setattr("gemma_export.precision.gptq._STRIP", strip)
        gram = Gram(_COLUMNS)
        for part in inputs.split(150):
            gram.add(part)
        factors.append(gram.feedback("w"))
    whole, strips = factors
    torch.testing.assert_close(strips.before(0, _COLUMNS), whole.before(0, _COLUMNS))
    torch.testing.assert_close(strips.importance(), whole.importance())


def test_collinear_inputs_can_be_factorised() -> None:
    """One huge token makes its channels equal to the last bit."""
    weight, inputs = _case()
    inputs[0, :5] = 1e6
    assert _quantised(weight, inputs, _LAYOUTS[0]).isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_moments_that_are_not_finite_are_refused_by_name(value: float) -> None:
    _, inputs = _case()
    inputs[3, 7] = value
    gram = Gram(_COLUMNS)
    gram.add(inputs)
    with pytest.raises(NonFiniteError, match=r"inputs of model\.x"):
        gram.feedback("model.x")


@pytest.mark.parametrize("columns", [100, 101, 40, 33, 5])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_last_block_of_any_width_is_quantised_as_well_as_the_others(columns: int, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, inputs = (torch.randn(count, columns, generator=generator) for count in (_ROWS, 600))
    gram = Gram(columns)
    gram.add(inputs)
    layout = BlockFormat(bits=4, block_size=32, symmetric=symmetric)
    found = dequantise(gptq(weight.t().contiguous(), gram.feedback("w"), layout, torch.float32), layout)
    last = slice(columns // 32 * 32, columns)
    lost = (found[:, :columns] - weight)[:, last].norm() / weight[:, last].norm()
    assert lost < 0.15
