"""LowRankSum: equals torch's own result however the chunks fall, in bounded memory, and names what is not finite."""

from __future__ import annotations

import pytest
import tolerances
import torch

from gemma_export import weights
from gemma_export.errors import NonFiniteError
from gemma_export.low_rank import LowRankSum
from gemma_export.weights import Cast, Constant, Transpose, Weight


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def constant(tensor: torch.Tensor, name: str = "w") -> Weight:
    return Constant(tensor, name)


# chunk sizes that do and do not divide the rows of base and left; one row wider than a chunk
@pytest.mark.parametrize("chunk_bytes", [4, 40, 100, 1 << 20])
@pytest.mark.parametrize(("rows", "rank", "columns"), [(1, 1, 1), (7, 3, 5), (64, 16, 33), (33, 40, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equals_torch(
    rows: int, rank: int, columns: int, dtype: torch.dtype, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_CHUNK_BYTES", chunk_bytes)
    base, left, right = (
        random(rows, columns, dtype=dtype),
        random(rows, rank, seed=1, dtype=dtype),
        random(rank, columns, seed=2, dtype=dtype),
    )
    found = LowRankSum(constant(base), constant(left), constant(right), scale=0.75, name="sum")
    expected = base.float() + 0.75 * (left.float() @ right.float())
    assert (found.shape, found.dtype) == ((rows, columns), torch.float32)
    torch.testing.assert_close(found.tensor(), expected, rtol=0, atol=tolerances.MERGED_WEIGHTS * rank)
    # a second time: nothing is used up
    assert torch.equal(found.tensor(), found.tensor())


def test_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_CHUNK_BYTES", 100)
    base, left, right, norms = random(19, 8), random(19, 4, seed=1), random(4, 8, seed=2), random(19, seed=3).abs()
    found = LowRankSum(constant(base), constant(left), constant(right), scale=2, norms=constant(norms), name="sum")
    whole = base + 2 * (left @ right)
    expected = whole * (norms / whole.norm(dim=1)).unsqueeze(1)
    torch.testing.assert_close(found.tensor(), expected, rtol=0, atol=tolerances.MERGED_WEIGHTS * 4)


def test_its_own_inputs_stay_as_they_are() -> None:
    base, left, right = random(6, 4), random(6, 2), random(2, 4)
    copies = base.clone(), left.clone(), right.clone()
    LowRankSum(constant(base), constant(left), constant(right), scale=1, name="sum").tensor()
    assert all(torch.equal(tensor, copy) for tensor, copy in zip((base, left, right), copies, strict=True))


def test_a_cast_of_the_sum_rounds_once() -> None:
    base, left, right = random(9, 8, dtype=torch.bfloat16), random(9, 2, seed=1), random(2, 8, seed=2)
    merged = LowRankSum(constant(base), constant(left), constant(right), scale=1, name="sum")
    assert torch.equal(Cast(merged, torch.float16).tensor(), merged.tensor().half())


@pytest.mark.parametrize("where", ["base", "left", "right", "norms"])
def test_stored_nan_is_named_with_its_own_position(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_CHUNK_BYTES", 64)
    tensors = {"base": random(30, 4), "left": random(30, 3), "right": random(3, 4), "norms": random(30)}
    position = {"base": [21, 2], "left": [25, 1], "right": [2, 3], "norms": [17]}[where]
    tensors[where][tuple(position)] = float("nan")
    parts = {name: constant(tensor, f"the.{name}") for name, tensor in tensors.items()}
    merged = LowRankSum(parts["base"], parts["left"], parts["right"], scale=1, norms=parts["norms"], name="sum")
    with pytest.raises(NonFiniteError) as caught:
        merged.tensor()
    assert f"tensor the.{where}, position {position}: nan" in caught.value.message


def test_overflow_of_the_sum_is_named() -> None:
    left, right = torch.full((5, 1), 1e30), torch.full((1, 4), 1e30)
    left[:3] = 0
    merged = LowRankSum(constant(random(5, 4)), constant(left), constant(right), scale=1, name="q with adapter mine")
    with pytest.raises(NonFiniteError, match=r"tensor q with adapter mine, position \[3, 0\]: inf, expected"):
        Cast(merged, torch.float32).tensor()
    large = LowRankSum(constant(random(5, 4)), constant(left * 1e-26), constant(right * 1e-29), scale=10, name="q")
    with pytest.raises(NonFiniteError, match=r"tensor q, position \[3, 0\]: 1e\+06 does not fit float16"):
        Cast(large, torch.float16).tensor()


def test_nan_in_a_transposed_factor_keeps_its_stored_position() -> None:
    factor = random(3, 10)
    factor[1, 8] = float("nan")
    left = Transpose(Cast(constant(factor, "lora_embedding_A"), torch.float32))
    merged = LowRankSum(constant(random(10, 4)), left, constant(random(3, 4)), scale=1, name="table")
    with pytest.raises(NonFiniteError, match=r"tensor lora_embedding_A, position \[1, 8\]"):
        merged.tensor()
