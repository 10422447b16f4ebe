"""The second-order rule against GPTQ as its paper writes it, with an explicit inverse, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemma_export.errors import NonFiniteError
from gemma_export.precision import QUANTISERS
from gemma_export.precision.block_codes import dequantise
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.gptq import gptq
from gemma_export.precision.second_moments import Asymmetry, Gram

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


def test_wide_moments_are_made_and_factorised_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them narrower than the others."""
    weight, inputs = _case()
    factors = []
    for strip in (_COLUMNS, 40):
        monkeypatch.setattr("gemma_export.precision.second_moments._STRIP", strip)
        gram = Gram(_COLUMNS)
        for part in inputs.split(150):
            gram.add(part)
        factors.append(gram.feedback("w"))
    whole, strips = factors
    for first, last in ((0, _COLUMNS), (0, 32), (32, 64), (50, 70), (64, _COLUMNS)):
        torch.testing.assert_close(strips.before(first, last), whole.before(first, last))
    torch.testing.assert_close(strips.importance(), whole.importance())
    torch.testing.assert_close(strips.pull(weight), whole.pull(weight))


def _changed(inputs: torch.Tensor) -> torch.Tensor:
    """Inputs of other values that depend on the old ones, as those behind a quantised matrix do."""
    generator = torch.Generator().manual_seed(2)
    mixing = torch.eye(_COLUMNS) + 0.02 * torch.randn(_COLUMNS, _COLUMNS, generator=generator)
    return inputs @ mixing


def _moments(weight: torch.Tensor, expected: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    asymmetry = Asymmetry("w", weight)
    for reference, part in zip(expected.split(150), inputs.split(150), strict=True):
        asymmetry.add(reference, part)
    return torch.cat([asymmetry.moments(0, 10), asymmetry.moments(10, _ROWS)])


def test_rows_come_to_what_gives_half_of_the_references_outputs_back() -> None:
    """In 8 bits, where rounding hardly matters, against the normal equations solved in float64."""
    weight, expected = _case()
    inputs = _changed(expected)
    gram = Gram(_COLUMNS)
    gram.add(inputs)
    feedback = gram.feedback("w", damping=0.01)
    pull = feedback.pull(_moments(weight, expected, inputs))
    layout = BlockFormat(bits=8, block_size=32, symmetric=False)
    found = dequantise(gptq(weight.t().contiguous(), feedback, layout, torch.float32, pull), layout)[:, :_COLUMNS]
    w, x, y = (tensor.double().numpy() for tensor in (weight, inputs, expected))
    moments = x.T @ x
    np.fill_diagonal(moments, moments.diagonal() * (1 + 2.0**-12) + 0.01 * moments.diagonal().mean())
    wanted = w + 0.5 * np.linalg.solve(moments, (w @ (y - x).T @ x).T).T
    moved, missed = np.linalg.norm((wanted - w) @ x.T), np.linalg.norm((found.numpy() - wanted) @ x.T)
    assert missed < 0.1 * moved


@pytest.mark.parametrize("layout", _LAYOUTS, ids=str)
def test_changed_inputs_are_made_up_for(layout: BlockFormat) -> None:
    weight, expected = _case()
    inputs = _changed(expected)
    plain = _quantised(weight, inputs, layout)[:, :_COLUMNS]
    gram = Gram(_COLUMNS)
    gram.add(inputs)
    feedback = gram.feedback("w")
    pull = feedback.pull(_moments(weight, expected, inputs))
    found = dequantise(gptq(weight.t().contiguous(), feedback, layout, torch.float32, pull), layout)[:, :_COLUMNS]
    errors = [(result @ inputs.T - weight @ expected.T).square().mean() for result in (found, plain)]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("rows", [_ROWS, _COLUMNS, 3 * _COLUMNS])
def test_what_rows_make_up_for_in_matrices_of_any_shape(rows: int) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, expected = torch.randn(rows, _COLUMNS, generator=generator), _case()[1]
    inputs = _changed(expected)
    w, x, y = (tensor.double() for tensor in (weight, inputs, expected))
    asymmetry = Asymmetry("w", weight)
    # [batch_size, sequence_length, columns]
    asymmetry.add(expected[:300].view(2, 150, -1), inputs[:300].view(2, 150, -1))
    asymmetry.add(expected[300:], inputs[300:])
    found = torch.cat([asymmetry.moments(0, 10), asymmetry.moments(10, rows)]).double()
    wanted = 0.5 * w @ (y - x).T @ x
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("rows", [_ROWS, 3 * _COLUMNS])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_references_inputs_that_are_not_finite_are_refused_by_name(rows: int, value: float) -> None:
    _, inputs = _case()
    expected = inputs.clone()
    expected[3, 7] = value
    asymmetry = Asymmetry("model.x", torch.full((rows, _COLUMNS), 1e6))
    asymmetry.add(expected, inputs * 1e5)
    with pytest.raises(NonFiniteError, match=r"inputs of model\.x"):
        asymmetry.moments(0, rows)


def test_inputs_as_the_references_pull_nothing() -> None:
    weight, inputs = _case()
    gram = Gram(_COLUMNS)
    gram.add(inputs)
    assert not gram.feedback("w").pull(_moments(weight, inputs, inputs)).any()


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
