"""Shares of weights that float16 holds with fewer bits, or not at all, known by construction."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gemma_export.headroom.weight_ranges import WeightRanges, without_layer
from gemma_export.weights import Constant, Weight

_UP, _NORM = "mlp.up_proj.weight", "input_layernorm.weight"
# the smallest normal float16 number is 2^-14, the smallest subnormal one 2^-24; 2^-26 and less become zero
_VALUES = (-2.0, 1.0, 2.0**-14, 2.0**-15, 2.0**-20, -(2.0**-26), 2.0**-30, 0.0)


def ranges(tensors: dict[str, torch.Tensor], is_float: Callable[[str], bool] = lambda name: True) -> WeightRanges:
    def weight(name: str) -> Weight:
        return Constant(tensors[name], name)

    found = WeightRanges(weight, is_gain=lambda name: name.endswith("norm.weight"), is_float=is_float)
    for name in tensors:
        assert torch.equal(found.weight(name).tensor(), tensors[name])
    return found


@pytest.mark.parametrize(
    ("shift", "largest", "subnormal", "zero"), [(0, 2.0, 4 / 8, 2 / 8), (6, 2.0 / 64, 5 / 8, 3 / 8)]
)
def test_shares_of_a_matrix(shift: int, largest: float, subnormal: float, zero: float) -> None:
    name = f"model.layers.0.{_UP}"
    found = ranges({name: torch.tensor(_VALUES).view(2, 4)}).ranges({_UP}, shift)
    assert set(found) == {_UP}
    assert (found[_UP].largest, found[_UP].subnormal, found[_UP].zero) == (largest, subnormal, zero)
    # and of one that the stream's factor does not reach, whatever it is
    (alone,) = ranges({name: torch.tensor(_VALUES).view(2, 4)}).ranges((), shift).values()
    assert (alone.largest, alone.subnormal, alone.zero) == (2.0, 4 / 8, 2 / 8)


def test_shares_are_of_all_layers_and_the_largest_of_any() -> None:
    tensors = {
        f"model.layers.0.{_UP}": torch.full((2, 4), 2.0**-15),
        f"model.layers.11.{_UP}": torch.full((2, 4), -3.0),
    }
    found = ranges(tensors).ranges((), 0)[_UP]
    assert (found.largest, found.subnormal, found.zero) == (3.0, 0.5, 0.0)


def test_a_norm_is_ranged_as_the_gain_it_is_stored_as() -> None:
    found = ranges({f"model.layers.0.{_NORM}": torch.tensor([-1 + 2.0**-15, 0.0, 4.0, -1.0])}).ranges((), 0)[_NORM]
    assert (found.largest, found.subnormal, found.zero) == (5.0, 1 / 4, 0.0)


def test_a_tied_table_counts_once() -> None:
    name = "model.embed_tokens.weight"
    watched = ranges({name: torch.tensor([[2.0**-15, 1.0]])})
    watched.weight(name).tensor()
    (found,) = watched.ranges((), 0).values()
    assert found.subnormal == 0.5
    assert int(watched._counts[name].sum()) == 2


def test_matrices_of_integers_have_no_range() -> None:
    tensors = {f"model.layers.0.{_UP}": torch.ones(2, 2), f"model.layers.0.{_NORM}": torch.zeros(2)}
    assert set(ranges(tensors, is_float=lambda name: "norm" in name).ranges((), 0)) == {_NORM}


def test_names_without_their_layer() -> None:
    assert without_layer("model.layers.17.mlp.up_proj.weight") == "mlp.up_proj.weight"
    assert without_layer("model.norm.weight") == "model.norm.weight"
