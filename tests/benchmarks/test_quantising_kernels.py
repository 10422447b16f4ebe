"""The benchmark of the quantising kernels: every layout, and the pass that quantisers run."""

from __future__ import annotations

import pytest
import torch

from benchmarks import quantising_kernels
from gemma_export.precision.block_codes import compiled_pass
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.quantisers import QUANTISERS
from gemma_export.precision.quantisers.search import FACTORS


def test_every_layout_has_its_rates(capsys: pytest.CaptureFixture[str]) -> None:
    assert quantising_kernels.main(["--rows", "600", "--rounds", "1"]) == 0
    rows = [
        line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith(("| search", "| rtn"))
    ]
    assert len({row[0] for row in rows}) == 2 * 4 * 2 * 2
    # a million weights: threads that start are little beside them
    assert all(float(rate) > 0 for row in rows for rate in (row[1], row[2], row[3].removesuffix(" |")))


@pytest.mark.parametrize("wrong", [["--rows", "0"], ["--rounds", "0"]])
def test_wrong_amounts_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        quantising_kernels.main(wrong)
    assert caught.value.code == 2


@pytest.mark.parametrize("name", ["search", "rtn"])
def test_the_pass_is_the_quantisers_and_may_run_again(name: str) -> None:
    rows, layout = torch.randn(5, 300).bfloat16(), BlockFormat(bits=4, block_size=64, symmetric=False)
    run, codes = compiled_pass(rows, layout, torch.float16, FACTORS[False] if name == "search" else None)
    run()
    run()
    expected = QUANTISERS[name].prepare("w", layout, torch.float16)(rows)
    assert torch.equal(codes().data, expected.data)
    assert torch.equal(codes().scales, expected.scales)
    assert torch.equal(codes().zero_points, expected.zero_points)
