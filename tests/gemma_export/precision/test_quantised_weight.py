"""The lazy parts of a quantised matrix: read once, written behind one another, refused by position."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from graphs import ArraySource

from gemma_export.errors import NonFiniteError
from gemma_export.precision.block_codes import BlockCodes
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.quantised_weight import QuantisedWeight
from gemma_export.precision.quantisers import QUANTISERS
from gemma_export.tensors import StoredTensor
from gemma_export.weights import Cast, Concat, Scale, Stored, Weight

_LAYOUT = BlockFormat(bits=4, block_size=32, symmetric=False)


class _Counted(ArraySource):
    def __init__(self, array: np.ndarray) -> None:
        super().__init__({"w": array})
        self.bytes_read = 0

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self.bytes_read += len(buffer)
        super().read_into(name, offset, buffer)


def _array(rows: int = 40) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((rows, 72)).astype(np.float32)


def _block_weight(
    source: ArraySource, dtype: torch.dtype = torch.float32, layout: BlockFormat = _LAYOUT
) -> QuantisedWeight:
    weight = Cast(Stored(source, "w"), torch.float32)
    return QuantisedWeight(weight, "w", layout, dtype, QUANTISERS["search"].prepare("w", layout, dtype))


def _written(part: object) -> bytes:
    file = io.BytesIO()
    part.tofile(file)  # type: ignore[attr-defined]
    return file.getvalue()


def test_each_source_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_export.precision.row_pieces._PIECE", 500)
    monkeypatch.setattr("gemma_export.weights._CHUNK_BYTES", 1000)
    array = _array()
    source = _Counted(array)
    matrix = _block_weight(source)
    contents = [_written(part) for part in (matrix.data, matrix.scales, matrix.zero_points)]
    assert source.bytes_read == array.nbytes
    assert [len(content) for content in contents] == [40 * 3 * 16, 40 * 3 * 4, 40 * 2]
    # alone and in any order the bytes are the same; nothing stays behind
    for part, content in zip((matrix.zero_points, matrix.scales, matrix.table), reversed(contents), strict=True):
        assert _written(part) == content


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("piece", [1, 500, 1 << 20])
def test_threads_and_pieces_do_not_change_the_bytes(workers: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _written(_block_weight(ArraySource({"w": _array()})).data)
    monkeypatch.setattr("gemma_export.precision.row_pieces._WORKERS", workers)
    monkeypatch.setattr("gemma_export.precision.row_pieces._PIECE", piece)
    monkeypatch.setattr("gemma_export.weights._CHUNK_BYTES", 1000)
    assert _written(_block_weight(ArraySource({"w": _array()})).data) == expected


def test_a_concatenation_is_quantised_in_order() -> None:
    array = _array()
    first, second = (Cast(Stored(ArraySource({"w": part}), "w"), torch.float32) for part in (array[:7], array[7:]))
    rows = QUANTISERS["search"].prepare("w", _LAYOUT, torch.float32)
    joined = QuantisedWeight(Concat((first, second)), "w", _LAYOUT, torch.float32, rows)
    assert _written(joined.data) == _written(_block_weight(ArraySource({"w": array})).data)


class _Narrow(ArraySource):
    """A tensor of 16-bit numbers."""

    def __init__(self, dtype: str, array: np.ndarray) -> None:
        super().__init__({})
        self._bytes["w"] = array.tobytes()
        self.tensors["w"] = StoredTensor(dtype, array.shape)


def _bfloat16(array: np.ndarray) -> ArraySource:
    return _Narrow("bfloat16", (array.view(np.uint32) >> 16).astype(np.uint16))


@pytest.mark.parametrize("name", ["rtn", "search"])
def test_tensors_are_read_in_the_type_they_are_stored_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing widens on the way: pieces of several tensors, the last of each shorter than the one before."""
    monkeypatch.setattr("gemma_export.precision.row_pieces._PIECE", 500)
    array = (_array().view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    quantise, seen = QUANTISERS[name].prepare("w", _LAYOUT, torch.float32), []

    def watched(rows: torch.Tensor) -> BlockCodes:
        seen.append((rows.dtype, len(rows)))
        return quantise(rows)

    def made(*weights: Weight) -> bytes:
        matrix = QuantisedWeight(Concat(weights), "w", _LAYOUT, torch.float32, watched)
        return b"".join(_written(part) for part in (matrix.data, matrix.scales, matrix.zero_points))

    parts = [Cast(Stored(_bfloat16(part), "w"), torch.float32) for part in (array[:17], array[17:])]
    found = made(*parts)
    assert seen == [(torch.bfloat16, count) for count in (7, 7, 3, 7, 7, 7, 2)]
    seen.clear()
    # an expression that computes anything is widened first, and of the same numbers gives the same bytes
    assert made(*(Scale(part, 1.0) for part in parts)) == found
    assert {dtype for dtype, _ in seen} == {torch.float32}
    seen.clear()
    half = _Narrow("float16", array.astype(np.float16))
    wide = ArraySource({"w": array.astype(np.float16).astype(np.float32)})
    assert made(Cast(Stored(half, "w"), torch.float32)) == made(Cast(Stored(wide, "w"), torch.float32))
    assert {dtype for dtype, _ in seen} == {torch.float32}


def test_a_tensor_without_rows_has_no_codes() -> None:
    parts = [Cast(Stored(_bfloat16(part), "w"), torch.float32) for part in (_array(3), _array(3)[:0])]
    quantise = QUANTISERS["search"].prepare("w", _LAYOUT, torch.float32)
    assert (
        len(_written(QuantisedWeight(Concat(tuple(parts)), "w", _LAYOUT, torch.float32, quantise).data)) == 3 * 3 * 16
    )


@pytest.mark.parametrize("name", ["rtn", "search"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_damaged_weight_of_bfloat16_is_named(number: float, name: str) -> None:
    array = _array()
    array[17, 5] = number
    weight = Cast(Stored(_bfloat16(array), "w"), torch.float32)
    matrix = QuantisedWeight(
        weight, "head", _LAYOUT, torch.float32, QUANTISERS[name].prepare("w", _LAYOUT, torch.float32)
    )
    with pytest.raises(NonFiniteError, match=r"tensor w, position \[17, 5\]: "):
        _written(matrix.data)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_damaged_weight_is_named(number: float) -> None:
    array = _array()
    array[17, 5] = number
    with pytest.raises(NonFiniteError, match=r"tensor w, position \[17, 5\]: "):
        _written(_block_weight(ArraySource({"w": array})).data)


@pytest.mark.parametrize("part", ["data", "scales"])
def test_a_scale_beyond_float16_is_named(part: str) -> None:
    array = _array()
    array[17, 40] = 3e6
    assert _written(_block_weight(ArraySource({"w": array})).data)
    with pytest.raises(NonFiniteError, match=r"tensor w, row 17, columns from 32: .* does not fit float16") as caught:
        _written(getattr(_block_weight(ArraySource({"w": array}), torch.float16), part))
    assert "float32" in caught.value.hint


def test_the_table_is_the_data_in_another_shape() -> None:
    matrix = _block_weight(ArraySource({"w": _array()}))
    assert matrix.table.weight is matrix.data.weight
    assert tuple(matrix.data.shape) == (40, 3, 16)
    assert tuple(matrix.table.shape) == (40, 48)
    assert {part.group for part in (matrix.data, matrix.table, matrix.scales, matrix.zero_points)} == {matrix}
