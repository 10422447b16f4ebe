"""Weight expressions: each equals torch's own result, in chunks, in bounded memory, and refuses what is not finite."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import pytest
import torch

from gemma_export import weights
from gemma_export.errors import NonFiniteError
from gemma_export.tensors import StoredTensor
from gemma_export.weights import Cast, Concat, Constant, Scale, Shift, Stored, Transpose, Weight, WeightTensor

NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
DTYPES = list(NAMES)
# with chunks of 64 bytes, float32 rows of 4: one chunk, exactly one, one row more, many and a rest; rows wider than a
# chunk; vectors around 16 and 32 elements
CHUNK_BYTES = 64
SHAPES = [(1,), (15,), (16,), (17,), (33,), (1, 1), (3, 4), (4, 4), (5, 4), (19, 4), (3, 40), (2, 100), (7, 2, 3)]
MATRICES = [shape for shape in SHAPES if len(shape) == 2]


class Memory:
    """A source in memory that keeps what was asked for."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.content = {name: raw(tensor) for name, tensor in tensors.items()}
        self.tensors = {name: StoredTensor(NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
        self.reads: list[tuple[str, int, int]] = []

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self.reads.append((name, offset, len(buffer)))
        buffer[:] = self.content[name][offset : offset + len(buffer)]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stored(tensor: torch.Tensor, name: str = "w") -> Stored:
    return Stored(Memory({name: tensor}), name)


def assert_is(weight: Weight, expected: torch.Tensor) -> None:
    """Shape, type and every bit: joined chunks, whole tensor, and the three ways to bytes."""
    assert (weight.shape, weight.dtype) == (tuple(expected.shape), expected.dtype)
    # copied at once: a chunk is valid until the next is taken
    chunks = [chunk.clone() for chunk in weight.chunks()]
    assert all(chunk.is_contiguous() and chunk.dtype == expected.dtype for chunk in weight.chunks())
    assert raw(torch.cat(chunks)) == raw(expected)
    assert raw(weight.tensor()) == raw(expected)
    tensor = WeightTensor(weight, "name")
    file = io.BytesIO()
    tensor.tofile(file)
    assert file.getvalue() == tensor.tobytes() == raw(expected)
    array = tensor.numpy()
    assert array.shape == tuple(expected.shape)
    assert array.dtype == tensor.dtype.numpy()
    assert array.tobytes() == raw(expected)
    assert tensor.nbytes == len(raw(expected))
    assert tensor.size == expected.numel()


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_CHUNK_BYTES", CHUNK_BYTES)
    # two columns of float32 at a time
    monkeypatch.setattr(weights, "_TRANSPOSE_BYTES", 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_stored_and_constant(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = random(shape, dtype)
    for weight in (stored(tensor), Constant(tensor, "c")):
        assert_is(weight, tensor)
        # a chunk, or one row where that is larger
        assert all(len(chunk) == 1 or chunk.nbytes <= CHUNK_BYTES for chunk in weight.chunks())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_cast(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for source in DTYPES:
        tensor = random(shape, source)
        assert_is(Cast(stored(tensor), dtype), tensor.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shift(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = random(shape, dtype)
    assert_is(Shift(stored(tensor), 1.0), tensor + 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", MATRICES)
def test_transpose(shape: tuple[int, int], dtype: torch.dtype) -> None:
    tensor = random(shape, dtype)
    assert_is(Transpose(stored(tensor)), tensor.t())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_concat(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    parts = [random((rows, *shape[1:]), dtype, seed=rows) for rows in (shape[0], 1, 2 * shape[0] + 1)]
    assert_is(Concat(tuple(stored(part) for part in parts)), torch.cat(parts))


def test_the_expressions_of_a_gemma() -> None:
    """As binding builds them: gain 1 + w in float32, and packed projections transposed."""
    norm = random((37,), torch.bfloat16)
    assert_is(Cast(Shift(Cast(stored(norm), torch.float32), 1.0), torch.float16), (norm.float() + 1.0).half())
    parts = [random((rows, 12), torch.bfloat16, seed=rows) for rows in (16, 4, 5)]
    packed = Transpose(Concat(tuple(Cast(stored(part), torch.float16) for part in parts)))
    assert_is(packed, torch.cat(parts).half().t())
    assert_is(Cast(Transpose(stored(parts[0])), torch.float32), parts[0].t().float())


def test_concat_refuses_other_widths_and_types() -> None:
    for other in (random((2, 5), torch.float32), random((2, 4), torch.float16), random((4,), torch.float32)):
        with pytest.raises(AssertionError):
            Concat((stored(random((2, 4), torch.float32)), stored(other)))


def test_expressions_are_lazy() -> None:
    source = Memory({"w": random((32, 4), torch.bfloat16)})
    weight = Cast(Transpose(Concat((Stored(source, "w"), Stored(source, "w")))), torch.float16)
    tensor = WeightTensor(weight, "name")
    assert (list(tensor.shape), tensor.nbytes, tensor.dtype) == ([4, 64], 512, ir.DataType.FLOAT16)
    assert repr(tensor) == "WeightTensor(name, FLOAT16[4, 64])"
    assert source.reads == []


def test_each_byte_is_read_once_a_chunk_at_a_time() -> None:
    source = Memory({"w": random((19, 4), torch.float32)})
    chunks = Cast(Stored(source, "w"), torch.float16).chunks()
    next(chunks)
    assert source.reads == [("w", 0, 64)]
    assert sum(1 for _ in chunks) == 4
    assert source.reads == [("w", start, min(64, 304 - start)) for start in range(0, 304, 64)]


def test_messages_name_the_stored_tensors() -> None:
    first, second = stored(random((2, 4), torch.float32), "a"), stored(random((2, 4), torch.float32), "b")
    assert str(Cast(Shift(Transpose(Concat((first, second))), 1.0), torch.float16)) == "a + b"
    assert str(Constant(torch.ones(1), "table")) == "table"


def test_arrays_and_dlpack() -> None:
    expected = random((5, 4), torch.float32)
    tensor = WeightTensor(stored(expected), "name")
    np.testing.assert_array_equal(np.asarray(tensor), expected.numpy())
    assert np.asarray(tensor, dtype=np.float64).dtype == np.float64
    assert torch.equal(torch.from_dlpack(tensor), expected)
    np.testing.assert_array_equal(np.from_dlpack(tensor), expected.numpy())
    # numpy cannot export this type
    half = random((5, 4), torch.bfloat16)
    assert torch.equal(torch.from_dlpack(WeightTensor(stored(half), "name")), half)


def refusal(tensor: torch.Tensor, dtype: torch.dtype, build: Callable[[Weight], Weight] = lambda w: w) -> str:
    with pytest.raises(NonFiniteError) as caught:
        list(Cast(build(stored(tensor, "model.w")), dtype).chunks())
    assert caught.value.exit_code == 3
    fits = "does not fit" in caught.value.message
    assert ("--fp32" in caught.value.hint) is fits
    assert ("damaged" in caught.value.hint) is not fits
    return caught.value.message


POSITIONS = [((20,), (0,)), ((20,), (16,)), ((20,), (19,)), ((9, 4), (0, 0)), ((9, 4), (4, 3)), ((9, 4), (8, 1))]


@pytest.mark.parametrize(("shape", "position"), POSITIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("value", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_non_finite_values_are_found(
    shape: tuple[int, ...], position: tuple[int, ...], dtype: torch.dtype, value: float, shown: str
) -> None:
    for source in DTYPES:
        tensor = torch.ones(shape, dtype=source)
        tensor[position] = value
        message = refusal(tensor, dtype)
        assert message == (f"tensor model.w, position {list(position)}: {shown}, expected a finite number")


@pytest.mark.parametrize(("shape", "position"), POSITIONS)
@pytest.mark.parametrize(
    ("value", "dtype", "shown"),
    [
        (65520.0, torch.float16, "65520 does not fit float16"),
        (-65520.0, torch.float16, "-65520 does not fit float16"),
        (-1e30, torch.float16, "-1e+30 does not fit float16"),
        (3.4e38, torch.bfloat16, "3.4e+38 does not fit bfloat16"),
    ],
)
def test_overflow_is_found(
    shape: tuple[int, ...], position: tuple[int, ...], value: float, dtype: torch.dtype, shown: str
) -> None:
    tensor = torch.ones(shape)
    tensor[position] = value
    assert refusal(tensor, dtype) == f"tensor model.w, position {list(position)}: {shown}"


def test_the_first_of_several_is_named() -> None:
    tensor = torch.ones(9, 4)
    tensor[7, 0], tensor[5, 3], tensor[5, 1] = math.nan, 1e6, 1e5
    assert "position [5, 1]: 100000 does not fit" in refusal(tensor, torch.float16)


def test_positions_count_through_a_concatenation() -> None:
    tensor = torch.ones(9, 4)
    tensor[6, 2] = math.inf
    message = refusal(tensor, torch.float16, lambda weight: Concat((stored(torch.ones(5, 4), "a"), weight)))
    assert message.startswith("tensor a + model.w, position [11, 2]: inf")


def test_overflow_made_by_a_shift_is_found() -> None:
    tensor = torch.tensor([1.0, 65519.5])
    assert_is(Cast(stored(tensor), torch.float16), tensor.half())
    assert "position [1]: 65520.5 does not fit" in refusal(tensor, torch.float16, lambda weight: Shift(weight, 1.0))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_edge_of_float16(sign: float) -> None:
    # the largest float16 is 65504, the next would be 65536: below the middle rounds down, the middle to even and away
    for value in (65504.0, 65512.0, 65519.0, 65519.996):
        tensor = torch.tensor([value * sign])
        assert Cast(stored(tensor), torch.float16).tensor().tolist() == [65504.0 * sign]
    for value in (65520.0, 65536.0):
        assert "does not fit float16" in refusal(torch.tensor([value * sign]), torch.float16)
    # bfloat16 has no value between these two
    for value, fits in ((65280.0, True), (65536.0, False)):
        tensor = torch.tensor([value * sign], dtype=torch.bfloat16)
        if fits:
            assert Cast(stored(tensor), torch.float16).tensor().tolist() == [value * sign]
        else:
            assert "65536 does not fit float16" in refusal(tensor, torch.float16)


def test_the_edge_of_bfloat16() -> None:
    largest = torch.finfo(torch.bfloat16).max
    # half a unit in the last place above it
    middle = largest + 2.0 ** (127 - 8)
    below = float(np.nextafter(np.float32(middle), np.float32(0)))
    assert Cast(stored(torch.tensor([below])), torch.bfloat16).tensor().tolist() == [largest]
    assert "does not fit bfloat16" in refusal(torch.tensor([middle]), torch.bfloat16)
    assert Cast(stored(torch.tensor([below])), torch.float32).tensor().tolist() == [below]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_float16_subnormals_round_to_the_nearest(sign: float) -> None:
    # multiples of 2^-24; ties to even; nothing is flushed to zero before half of the smallest
    unit = 2.0**-24
    expected = {0.5: 0, 0.500001: 1, 0.75: 1, 1: 1, 1.5: 2, 2.5: 2, 2.6: 3, 1023.4: 1023, 1023.5: 1024, 1024.4: 1024}
    tensor = torch.tensor([factor * unit * sign for factor in expected])
    for source in (torch.float32, torch.bfloat16):
        found = Cast(stored(tensor.to(source)), torch.float16).tensor()
        if source == torch.float32:
            assert found.tolist() == [factor * unit * sign for factor in expected.values()]
        # by numpy, which rounds once from float64
        exact = tensor.to(source).double().numpy().astype(np.float16)
        assert found.numpy().tobytes() == exact.tobytes()


def test_every_bfloat16_rounds_to_float16_as_numpy_does() -> None:
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
    every = every[every.double().abs() < 65520]
    assert len(every) > 36_000
    found = Cast(stored(every), torch.float16).tensor()
    assert found.numpy().tobytes() == every.double().numpy().astype(np.float16).tobytes()


# peak memory of a process of its own: what the expression streams, and, as a control, the same weight held whole
MEMORY_PROGRAM = """
import json, sys
from pathlib import Path

import torch

from gemma_export.checkpoint import SyntheticSource
from gemma_export.weights import Cast, Concat, Shift, Stored, WeightTensor

torch.set_num_threads(1)


def peak():
    status = Path("/proc/self/status")
    if status.exists():
        # not ru_maxrss: on Linux that starts with the peak of the process that started this one
        return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if "VmHWM" in line)
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Sink:
    size = 0

    def write(self, data):
        self.size += len(data)
        return len(data)


def expression(rows):
    source = SyntheticSource({"a": (rows, 2048), "b": (rows, 2048)}, 0)
    parts = tuple(Shift(Cast(Stored(source, name), torch.float32), 1.0) for name in "ab")
    return Cast(Concat(parts), torch.float16)


WeightTensor(expression(512), "warm").tofile(Sink())
began, sink = peak(), Sink()
WeightTensor(expression(25_000), "w").tofile(sink)
streamed = peak() - began
held = Concat(expression(25_000).weight.weights[:1]).tensor()
print(json.dumps({"bytes": sink.size, "streamed": streamed, "held": peak() - began}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read from /proc or by the resource module")
def test_streaming_needs_little_memory() -> None:
    found = subprocess.run([sys.executable, "-c", MEMORY_PROGRAM], check=True, capture_output=True, text=True)
    result = json.loads(found.stdout)
    assert result["bytes"] == 2 * 2 * 25_000 * 2048
    # a chunk and its float32 copies are 6 MB
    assert result["streamed"] < 32e6
    # the measurement sees what it should: one of the two in float32 at once is 205 MB
    assert result["held"] > 150e6


def test_scale_rounds_subnormals_and_rescues_what_would_overflow() -> None:
    """Scaled in float32 before the cast: 2^20 fits float16 afterwards, 3 * 2^-149 is rounded, not cut."""
    tensor = torch.tensor([1048576.0, -3 * 2.0**-149, 2.0**-130, 0.0, 1.5])
    scaled = Scale(stored(tensor), 2.0**-6)
    assert_is(scaled, tensor * 2.0**-6)
    assert_is(Cast(scaled, torch.float16), (tensor * 2.0**-6).half())
    with pytest.raises(NonFiniteError, match=r"tensor w, position \[0\]"):
        Cast(Scale(stored(tensor), 0.5), torch.float16).tensor()
