"""Scales that float16 holds with few bits: counted in every scheme, told where they cost accuracy."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from gemma_export.pipeline import export
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.block_weight import BlockWeight
from gemma_export.precision.graph_blocks import graph_blocks, scale_counts
from gemma_export.precision.options import WeightOptions
from gemma_export.precision.quantised_weight import QuantisedWeight
from gemma_export.precision.quantisers import QUANTISERS
from gemma_export.precision.scale_counts import ScaleCounts, count_scales
from gemma_export.precision.transposed_weight import TransposedWeight
from gemma_export.request import ExportRequest
from gemma_export.weights import Constant
from gemma_runtime import read_manifest


def test_scales_are_counted_by_their_size() -> None:
    scales = torch.tensor([1.0, -(2.0**-14), 1023 * 2.0**-24, -(2.0**-20), 15 * 2.0**-24, -(2.0**-24), 0.0])
    assert count_scales(scales.half()) == ScaleCounts(total=7, subnormal=4, coarse=2)
    # the other types have all their bits there
    assert count_scales(scales) == count_scales(scales.bfloat16()) == ScaleCounts(total=7)


def matrix(
    quantiser: str, bits: int, *, symmetric: bool, transposed: bool, dtype: torch.dtype = torch.float16
) -> BlockWeight:
    """Four rows of two blocks: scales of ordinary size, subnormal ones, coarse ones, and none."""
    layout = BlockFormat(bits=bits, block_size=32, symmetric=symmetric, transposed=transposed)
    rows = torch.linspace(-1, 1, 64).repeat(4, 1)
    # the largest weights of a block are about 1; a scale is that over 2^(bits - 1), or half of it
    sizes = torch.tensor([1.0, 2.0**-12, 2.0**-18, 0.0]) * 2.0 ** (bits - 4)
    weight = Constant(rows * sizes[:, None], "weight")
    prepared = QUANTISERS[quantiser].prepare("weight", layout, dtype)
    return QuantisedWeight(weight, "weight", layout, dtype, prepared)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("quantiser", ["rtn", "search"])
def test_every_scheme_counts_while_it_is_written(quantiser: str, bits: int, symmetric: bool, transposed: bool) -> None:
    blocks = matrix(quantiser, bits, symmetric=symmetric, transposed=transposed)
    assert blocks.scale_counts == ScaleCounts()
    parts = TransposedWeight(blocks) if transposed else blocks
    parts.data.tobytes()
    assert blocks.scale_counts == ScaleCounts(total=8, subnormal=4, coarse=2)
    # again, and alone: not twice
    parts.scales.tobytes()
    assert blocks.scale_counts == ScaleCounts(total=8, subnormal=4, coarse=2)


def test_a_graph_counts_each_matrix_once() -> None:
    """A table and its tied head are two initializers of one matrix."""
    blocks = matrix("rtn", 4, symmetric=False, transposed=False)
    tensors = (blocks.data, blocks.scales, blocks.zero_points, blocks.table)
    values = []
    for number, tensor in enumerate(tensors):
        assert tensor is not None
        value = ir.Value(name=f"value{number}", const_value=tensor)
        values.append(value)
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 21}), ir_version=10)
    assert graph_blocks(model) == [blocks]
    blocks.data.tobytes()
    assert scale_counts(model) == ScaleCounts(total=8, subnormal=4, coarse=2)


@pytest.mark.parametrize(
    ("options", "shift", "warned"),
    [
        (WeightOptions(scheme="int4", block_size=32, symmetric=True), "auto", False),
        (WeightOptions(scheme="int4", block_size=32, symmetric=True), "16", True),
        (WeightOptions(scheme="int8"), "14", True),
    ],
)
def test_an_export_tells_what_it_stored(options: WeightOptions, shift: str, warned: bool, tmp_path: Path) -> None:
    result = export(
        ExportRequest(variant="tiny", precision="fp16", residual_scale=shift, weights=options, output=tmp_path / "out")
    )
    counts = read_manifest(tmp_path / "out").precision.options["float16_scales"]
    assert counts["total"] > 0
    assert (counts["coarse"] > 0.01 * counts["total"]) == warned
    share = f"{counts['coarse'] / counts['total']:.1%} below 2^-20"
    assert [share in line and f"--residual-scale below {shift}" in line for line in result.warnings] == [True] * warned


def test_float32_activations_have_none_to_tell(tmp_path: Path) -> None:
    result = export(
        ExportRequest(variant="tiny", weights=WeightOptions(scheme="int8", quantiser="rtn"), output=tmp_path / "out")
    )
    assert "float16_scales" not in result.options
    assert result.warnings == ()
