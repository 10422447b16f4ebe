"""Synthetic weights: any byte on demand, the same everywhere."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_export.checkpoint import GENERATOR_VERSION, SyntheticSource
from gemma_export.tensors import StoredTensor

NAME = "model.layers.0.mlp.up_proj.weight"
# spans several blocks of the generator, and ends inside one
SHAPE = (150, 1001)
# SHA-256 of (NAME, SHAPE, seed 42) by GENERATOR_VERSION: whoever changes the numbers adds a line
GOLDEN = {1: "419415c96a7b16d015c491b86308e0ffcd9bc915cb953741f538456935c38546"}


def read(source: SyntheticSource, name: str = NAME, offset: int = 0, size: int | None = None) -> bytes:
    buffer = bytearray(source.tensors[name].nbytes - offset if size is None else size)
    source.read_into(name, offset, memoryview(buffer))
    return bytes(buffer)


def values(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.bfloat16).double()


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return SyntheticSource({NAME: SHAPE}, 42)


@pytest.fixture(scope="module")
def whole(source: SyntheticSource) -> bytes:
    return read(source)


def test_tensors_are_bfloat16(source: SyntheticSource) -> None:
    assert source.tensors == {NAME: StoredTensor("bfloat16", SHAPE)}


def test_golden_hash(whole: bytes) -> None:
    assert hashlib.sha256(whole).hexdigest() == GOLDEN[GENERATOR_VERSION]


@pytest.mark.parametrize("elements", [1001, 4096, 65536, 65537, 100_000])
def test_the_chunking_changes_nothing(source: SyntheticSource, whole: bytes, elements: int) -> None:
    step = 2 * elements
    parts = [read(source, offset=start, size=min(step, len(whole) - start)) for start in range(0, len(whole), step)]
    assert len(parts) > 1
    assert b"".join(parts) == whole


def test_any_range_is_a_part_of_the_whole(source: SyntheticSource, whole: bytes) -> None:
    elements = len(whole) // 2

    @settings(max_examples=50, deadline=None, derandomize=True, database=None)
    @given(st.integers(0, elements), st.integers(0, elements))
    def run(first: int, second: int) -> None:
        start, end = 2 * min(first, second), 2 * max(first, second)
        assert read(source, offset=start, size=end - start) == whole[start:end]

    run()


def test_a_range_across_a_block_of_the_generator(source: SyntheticSource, whole: bytes) -> None:
    edge = 2 << 16
    assert read(source, offset=edge - 2, size=4) == whole[edge - 2 : edge + 2]


def test_only_seed_name_and_width_decide(whole: bytes) -> None:
    other = SyntheticSource({"a": (1,), NAME: SHAPE, "b": (5,)}, 42)
    read(other, "b")
    assert read(other) == whole
    # elements come one after another: another number of rows changes none of them
    assert read(SyntheticSource({NAME: (3, SHAPE[1])}, 42)) == whole[: 3 * SHAPE[1] * 2]


def test_seeds_and_names_differ(whole: bytes) -> None:
    contents = {
        (seed, name): read(SyntheticSource({name: SHAPE}, seed), name)
        for seed, name in itertools.product((0, 1, 42, 2**63 - 1), (NAME, "model.layers.1.mlp.up_proj.weight"))
    }
    assert contents[42, NAME] == whole
    assert len(set(contents.values())) == len(contents)
    # unrelated, not just shifted or scaled
    for first, second in itertools.combinations(contents.values(), 2):
        correlation = np.corrcoef(values(first).numpy(), values(second).numpy())[0, 1]
        assert abs(correlation) < 5 / math.sqrt(len(whole) // 2)


@pytest.mark.parametrize("shape", [(20_000,), (40, 500), (100, 256), (20, 2048), (8, 24_576), (4, 16, 300)])
def test_standard_deviation_is_near_the_documented_one(shape: tuple[int, ...]) -> None:
    weights = values(read(SyntheticSource({"w": shape}, 0), "w"))
    expected = shape[-1] ** -0.5 if len(shape) > 1 else 0.1
    # a power of two as scale: within a factor of sqrt(2), and 3% for the sample
    assert 0.97 / math.sqrt(2) <= weights.std().item() / expected <= 1.03 * math.sqrt(2)
    # the mean of n values scatters by deviation / sqrt(n)
    assert abs(weights.mean().item()) < 5 * expected / math.sqrt(weights.numel())


def test_values_are_finite_and_exact_in_float16(whole: bytes) -> None:
    weights = values(whole)
    assert weights.isfinite().all()
    assert torch.equal(weights.half().double(), weights)
    scale = weights[weights != 0].abs().min()
    assert math.log2(scale).is_integer()
    integers = weights / scale
    assert torch.equal(integers, integers.round())
    # every integer from -127 to 127, none beyond
    assert sorted(set(integers.tolist())) == list(range(-127, 128))
