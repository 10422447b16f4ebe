"""Codes, scales and zero points against an independent numpy reference, and what a search must win."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemma_export.precision.block_codes import BlockCodes, dequantise, stored_scales
from gemma_export.precision.block_format import BLOCK_SIZES, BlockFormat
from gemma_export.precision.quantisers import QUANTISERS
from gemma_export.precision.quantisers.grid import may_be_on_grid

_ROWS, _COLUMNS = 9, 144
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def _weights(seed: int = 0, columns: int = _COLUMNS) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((_ROWS, columns)) * 0.05).astype(np.float32)


def _layout(bits: int = 4, block_size: int = 32, symmetric: bool = False) -> BlockFormat:
    return BlockFormat(bits=bits, block_size=block_size, symmetric=symmetric)


def _quantise(
    name: str, weights: np.ndarray, layout: BlockFormat, dtype: torch.dtype = torch.float32
) -> tuple[BlockCodes, np.ndarray]:
    codes = QUANTISERS[name].prepare("w", layout, dtype)(torch.from_numpy(weights))
    return codes, dequantise(codes, layout).numpy()[:, : weights.shape[1]]


def _reference_rtn(weights: np.ndarray, bits: int, block: int, symmetric: bool) -> tuple[np.ndarray, ...]:
    """Block by block, in float32, as the module's docstring says: codes, scales, zero points."""
    rows, columns = weights.shape
    blocks = -(-columns // block)
    codes = np.zeros((rows, blocks * block), np.uint8)
    scales = np.zeros((rows, blocks), np.float32)
    zero_points = np.zeros((rows, blocks), np.uint8)
    top = np.float32(2**bits - 1)
    for row in range(rows):
        for index in range(blocks):
            part = np.zeros(block, np.float32)
            stop = min(columns, (index + 1) * block)
            part[: stop - index * block] = weights[row, index * block : stop]
            low, high = min(part.min(), np.float32(0)), max(part.max(), np.float32(0))
            if symmetric:
                scale = (high if high >= -low else low) / np.float32(-(2 ** (bits - 1)))
            else:
                scale = np.float32(high / top) - np.float32(low / top)
            inverse = np.float32(0) if scale == 0 else np.float32(1) / scale
            zero = np.float32(2 ** (bits - 1)) if symmetric else np.clip(np.rint(-low * inverse), 0, top)
            values = np.clip(np.rint(part * inverse) + zero, 0, top)
            codes[row, index * block : (index + 1) * block] = values
            scales[row, index], zero_points[row, index] = scale, zero
    return codes, scales, zero_points


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return codes
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    return codes[:, 0::2] | codes[:, 1::2] << 4


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_rtn_is_the_reference_bit_for_bit(bits: int, symmetric: bool, block_size: int) -> None:
    weights, layout = _weights(), _layout(bits, block_size, symmetric)
    found, values = _quantise("rtn", weights, layout)
    codes, scales, zero_points = _reference_rtn(weights, bits, block_size, symmetric)
    np.testing.assert_array_equal(found.data.numpy().reshape(_ROWS, -1), _packed(codes, bits))
    np.testing.assert_array_equal(found.scales.numpy(), scales)
    if symmetric:
        assert found.zero_points is None
    else:
        np.testing.assert_array_equal(found.zero_points.numpy(), _packed(zero_points, bits))
    wide = codes.reshape(_ROWS, -1, block_size).astype(np.float32) - zero_points[..., None]
    np.testing.assert_array_equal(values, (wide * scales[..., None]).reshape(_ROWS, -1)[:, :_COLUMNS])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", sorted(QUANTISERS))
def test_shapes_are_what_the_layout_plans(name: str, symmetric: bool) -> None:
    layout = _layout(symmetric=symmetric)
    found, _ = _quantise(name, _weights(), layout, torch.float16)
    sizes = dict(layout.stored("w", (_ROWS, _COLUMNS), 2))
    assert (found.data.nbytes, found.scales.nbytes) == (sizes["w.data"], sizes["w.scales"])
    assert tuple(found.data.shape) == layout.data_shape((_ROWS, _COLUMNS))
    assert ("w.zero_points" in sizes) == (not symmetric)
    if found.zero_points is not None:
        # five blocks: the last byte of each row holds one of them
        assert found.zero_points.nbytes == sizes["w.zero_points"] == _ROWS * 3


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", sorted(QUANTISERS))
def test_a_row_does_not_depend_on_its_neighbours(name: str, bits: int, symmetric: bool) -> None:
    """Any split over threads gives the same bytes."""
    weights, layout = _weights(), _layout(bits, 64, symmetric)
    whole, _ = _quantise(name, weights, layout)
    for row in range(_ROWS):
        alone, _ = _quantise(name, weights[row : row + 1].copy(), layout)
        assert torch.equal(alone.data[0], whole.data[row])
        assert torch.equal(alone.scales[0], whole.scales[row])


@pytest.mark.parametrize("scale_dtype", sorted(_DTYPES))
@pytest.mark.parametrize("columns", [31, 144, 2048, 2500])
@pytest.mark.parametrize("name", sorted(QUANTISERS))
def test_rows_as_they_are_stored_are_the_rows_widened(name: str, columns: int, scale_dtype: str) -> None:
    """bfloat16 needs no pass of its own, of rows that end in the middle of a block or go on behind a strip too."""
    rows = torch.from_numpy(_weights(7, columns)).bfloat16()
    for bits, block_size, symmetric in ((4, 32, True), (4, 128, False), (8, 64, False), (4, 256, True)):
        layout = _layout(bits, block_size, symmetric)
        quantise = QUANTISERS[name].prepare("w", layout, _DTYPES[scale_dtype])
        stored, widened = quantise(rows), quantise(rows.float())
        assert torch.equal(stored.data, widened.data)
        assert torch.equal(stored.scales, widened.scales)
        assert symmetric or torch.equal(stored.zero_points, widened.zero_points)


@pytest.mark.parametrize("scale_dtype", sorted(_DTYPES))
@pytest.mark.parametrize("size", [1e-7, 3e-5, 0.02, 700.0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_are_rounded_as_their_type_is(symmetric: bool, size: float, scale_dtype: str) -> None:
    """The compiled rounding is torch's and numpy's, subnormal numbers of float16 away from zero."""
    weights, dtype = _weights(8) * np.float32(size / 0.05), _DTYPES[scale_dtype]
    layout = _layout(4, 32, symmetric)
    wide, found = (_quantise("rtn", weights, layout, one)[0] for one in (torch.float32, dtype))
    assert torch.equal(found.scales, _rounded(wide.scales, dtype))


def _rounded(scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """By the libraries' own conversions."""
    steps = scales.double().numpy() * 2.0**24
    upwards = torch.from_numpy(np.copysign(np.ceil(np.abs(steps)), steps) * 2.0**-24)
    return (
        torch.where(scales.abs() < 2.0**-14, upwards.to(dtype), scales.to(dtype))
        if dtype == torch.float16
        else scales.to(dtype)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_of_every_size_are_rounded_to_the_nearest(dtype: torch.dtype) -> None:
    generator = np.random.default_rng(9)
    numbers = np.exp2(generator.uniform(-120, 15, 4096)) * generator.choice([-1.0, 1.0], 4096)
    # ties, to even and to odd, and the ends of the range
    ties = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 65504, 65519, 2.0**-14, -(2.0**-24)])
    scales = torch.from_numpy(np.concatenate((numbers, ties)).astype(np.float32))
    if dtype == torch.float16:
        # smaller ones become its smallest
        assert torch.equal(stored_scales(scales, dtype).abs().min().float(), torch.tensor(2.0**-24))
    assert torch.equal(stored_scales(scales, dtype), _rounded(scales, dtype))
    # of any shape, and of memory in any order
    assert torch.equal(
        stored_scales(scales[:4096].view(64, 64).t(), dtype), stored_scales(scales[:4096], dtype).view(64, 64).t()
    )
    beyond = stored_scales(torch.tensor([65520.0, 1e6, float("nan"), 1e-39]), torch.float16)
    assert beyond.tolist()[:2] == [float("inf")] * 2
    assert beyond[2].isnan()
    assert beyond[3] == 0


@pytest.mark.parametrize("scale_dtype", sorted(_DTYPES))
@pytest.mark.parametrize("symmetric", [True, False])
# NaN of several payloads: a carry must not make a number of one; infinities
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFE001, 0x7F800001, 0x7F800000, 0xFF800000])
@pytest.mark.parametrize("name", sorted(QUANTISERS))
def test_what_is_not_finite_gets_a_scale_that_is_not(name: str, bits: int, symmetric: bool, scale_dtype: str) -> None:
    weights = _weights()
    weights.view(np.uint32)[4, 70] = bits
    quantise = QUANTISERS[name].prepare("w", _layout(4, 32, symmetric), _DTYPES[scale_dtype])
    for rows in (torch.from_numpy(weights), torch.from_numpy((weights.view(np.uint32) >> 16).astype(np.uint16))):
        rows = rows if rows.dtype == torch.float32 else rows.view(torch.bfloat16)
        if not rows.isfinite().all():
            assert (~quantise(rows).scales.isfinite()).nonzero().tolist() == [[4, 2]]


@pytest.mark.parametrize(
    ("block_size", "symmetric", "gain"), [(32, False, 0.985), (128, False, 0.975), (32, True, 0.985), (128, True, 0.97)]
)
def test_search_has_less_error_than_rounding(block_size: int, symmetric: bool, gain: float) -> None:
    weights, layout = _weights(1, 2048), _layout(4, block_size, symmetric)
    errors = [np.square(_quantise(name, weights, layout)[1] - weights).sum() for name in ("search", "rtn")]
    assert errors[0] < gain**2 * errors[1]


@pytest.mark.parametrize("dtype", sorted(_DTYPES))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", sorted(QUANTISERS))
def test_blocks_that_hold_nothing_or_everything(name: str, symmetric: bool, dtype: str) -> None:
    weights = np.zeros((4, 128), np.float32)
    # all of one sign, one huge outlier, subnormal numbers that no reciprocal takes
    weights[0, 32:64] = np.linspace(0.5, 1, 32)
    weights[1, 40] = -3e4
    weights[1, 41:60] = 1e-3
    weights[2] = 1e-42
    found, values = _quantise(name, weights, _layout(4, 32, symmetric), _DTYPES[dtype])
    assert np.isfinite(values).all()
    assert (values[3] == 0).all()
    assert (values[2] == 0).all()
    assert (found.scales[3] == 0).all()
    assert values[1, 40] == pytest.approx(-3e4, rel=0.02)
    np.testing.assert_allclose(values[0, 32:64], weights[0, 32:64], atol=0.07)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", sorted(QUANTISERS))
@pytest.mark.parametrize("size", [2.0**-26, 3e-8, 2.0**-20, 2.0**-15, 1e-4])
def test_float16_scales_do_not_underflow(name: str, symmetric: bool, size: float) -> None:
    """The error stays below what the block's own 4 bits or float16's smallest step cost, whichever is larger."""
    weights = _weights(2, 128) / np.float32(0.05) * np.float32(size)
    found, values = _quantise(name, weights, _layout(4, 32, symmetric), torch.float16)
    assert (found.scales != 0).all()
    span = np.abs(weights).max()
    # half a step of the widest block (a refit may clip), and half of 2^-24 by which a scale grows at most per code
    assert np.abs(values - weights).max() <= max(span / 15 * 1.7, 2.0**-24)


def test_subnormal_scales_are_rounded_away_from_zero() -> None:
    scales = torch.tensor([2.0**-30, -(2.0**-30), 1.5 * 2.0**-24, 2.0**-14, 0.1, 0.0])
    found = stored_scales(scales, torch.float16).float()
    expected = [2.0**-24, -(2.0**-24), 2.0**-23, 2.0**-14, float(np.float16(0.1)), 0.0]
    assert found.tolist() == expected


@pytest.mark.parametrize("name", sorted(QUANTISERS))
def test_symmetric_blocks_of_16_levels_come_back_exactly(name: str) -> None:
    """Weights that are such codes already (quantisation-aware fine-tunes) lose nothing."""
    generator = np.random.default_rng(3)
    codes = generator.integers(-8, 8, (_ROWS, 8, 32))
    codes[..., 0] = -8
    scales = 2.0 ** generator.integers(-9, -5, (_ROWS, 8, 1))
    weights = (codes * scales).astype(np.float32).reshape(_ROWS, -1)
    np.testing.assert_array_equal(_quantise(name, weights, _layout(4, 32, True), torch.float16)[1], weights)


def _on_grid(dtype: torch.dtype, *, with_minus_eight: float, seed: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of Q4_0, rounded to a type, and what they were before, float32 [64, 1024] both."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(-7, 8, (64, 32, 32))
    reach = generator.random((64, 32)) < with_minus_eight
    codes[..., 5] = np.where(reach, -8, codes[..., 5])
    # a block of zeros, and one whose codes stay small
    codes[3, 4] = 0
    codes[5, 6] = generator.integers(-2, 3, 32)
    scales = generator.uniform(0.002, 0.02, (64, 32, 1)) * generator.choice([-1.0, 1.0], (64, 32, 1))
    exact = torch.from_numpy((codes * scales.astype(np.float16).astype(np.float32)).astype(np.float32)).flatten(1)
    return exact.to(dtype).float(), exact


@pytest.mark.parametrize("scale_dtype", ["float32", "float16"])
@pytest.mark.parametrize("with_minus_eight", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("dtype", sorted(_DTYPES))
def test_weights_of_q4_0_are_explained_to_the_last_bit(dtype: str, with_minus_eight: float, scale_dtype: str) -> None:
    """Rounding what is read back as the checkpoint was rounded gives the checkpoint, for every weight."""
    weights, exact = _on_grid(_DTYPES[dtype], with_minus_eight=with_minus_eight)
    _, values = _quantise("search", weights.numpy(), _layout(4, 32, True), _DTYPES[scale_dtype])
    assert torch.equal(torch.from_numpy(values).to(_DTYPES[dtype]).float(), weights)
    if dtype == "float32":
        assert torch.equal(torch.from_numpy(values), exact)


def test_rounding_does_not_find_q4_0() -> None:
    """Why there is a search: half of the blocks without code 0 get other codes."""
    weights, _ = _on_grid(torch.bfloat16, with_minus_eight=0.5)
    _, values = _quantise("rtn", weights.numpy(), _layout(4, 32, True))
    same = torch.from_numpy(values).bfloat16().float() == weights
    assert same.view(64, 32, 32).all(-1).float().mean() < 0.5


def test_q4_0_survives_a_power_of_two() -> None:
    weights, _ = _on_grid(torch.bfloat16, with_minus_eight=0.5)
    _, values = _quantise("search", (weights * 2.0**-9).numpy(), _layout(4, 32, True))
    assert torch.equal((torch.from_numpy(values) * 2.0**9).bfloat16().float(), weights)


def test_rows_off_the_grid_are_searched_as_ever() -> None:
    weights, _ = _on_grid(torch.bfloat16, with_minus_eight=0.5)
    plain = torch.from_numpy(_weights(9, 1024)).bfloat16().float()
    mixed = torch.cat((plain[:4], weights[:4], plain[4:]))
    # one weight of one block moves off the grid: its block is searched, its neighbours stay exact
    mixed[5, 40] += 1e-4
    found, values = _quantise("search", mixed.numpy(), _layout(4, 32, True))
    alone, _ = _quantise("search", plain.numpy(), _layout(4, 32, True))
    assert torch.equal(torch.cat((found.data[:4], found.data[8:])), alone.data)
    assert torch.equal(torch.cat((found.scales[:4], found.scales[8:])), alone.scales)
    same = (torch.from_numpy(values).bfloat16().float() == mixed)[4:8].view(4, 32, 32).all(-1)
    assert same.sum() == 4 * 32 - 1
    assert not same[1, 1]


def test_other_layouts_have_no_grid() -> None:
    weights, _ = _on_grid(torch.float32, with_minus_eight=1.0)
    for layout in (_layout(4, 64, True), _layout(4, 32, False), _layout(8, 32, True)):
        assert not may_be_on_grid(weights, layout)
    assert may_be_on_grid(weights.bfloat16(), _layout(4, 32, True))
