"""Codes that wait in a file come back as they were: in pieces, joined, transposed; a full disk is told."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import torch
from artifact.tiny_folder import run_child
from graphs import ArraySource

from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.block_weight import BlockPart
from gemma_export.precision.code_store import CalibratedWeight, CodeStore
from gemma_export.precision.quantised_weight import QuantisedWeight
from gemma_export.precision.quantisers import QUANTISERS
from gemma_export.precision.transposed_weight import TransposedWeight
from gemma_export.weights import Cast, Stored

_ROWS, _COLUMNS = 22, 72


def _both(layout: BlockFormat, dtype: torch.dtype, directory: Path) -> tuple[QuantisedWeight, CalibratedWeight]:
    """One matrix quantised while it is written, and from a store in uneven pieces of two tensors."""
    array = torch.randn(_ROWS, _COLUMNS, generator=torch.Generator().manual_seed(1)).numpy()
    quantise = QUANTISERS["search"].prepare("w", layout, dtype)
    weight = Cast(Stored(ArraySource({"w": array}), "w"), torch.float32)
    store = CodeStore(directory)
    # the second tensor comes first: the order of reading is the matrix's
    for name, pieces in (("b", (array[9:],)), ("a", (array[:2], array[2:9]))):
        assert name not in store
        for piece in pieces:
            store.append(name, quantise(torch.from_numpy(piece)))
        assert name in store
    stored = CalibratedWeight(store, ["a", "b"], "w", (_ROWS, _COLUMNS), layout, dtype)
    return QuantisedWeight(weight, "w", layout, dtype, quantise), stored


def _bytes(part: BlockPart | None) -> bytes:
    content = io.BytesIO()
    if part is not None:
        part.tofile(content)
    return content.getvalue()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_same_bytes(transposed: bool, bits: int, symmetric: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    layout = BlockFormat(bits=bits, block_size=32, symmetric=symmetric, transposed=transposed)
    expected, found = _both(layout, dtype, tmp_path)
    matrices = (TransposedWeight(expected), TransposedWeight(found)) if transposed else (expected, found)
    # "data" keeps the other two; asked for again alone they are made alone
    for part in ("data", "scales", "zero_points", "zero_points", "scales"):
        first, second = (_bytes(getattr(matrix, part)) for matrix in matrices)
        assert first == second, part
    assert list(tmp_path.iterdir()) == []


_LIMITED = """
import resource, sys
from pathlib import Path
import torch
from gemma_export.errors import GemmaExportError
from gemma_export.precision.block_codes import BlockCodes
from gemma_export.precision.code_store import CodeStore
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
store = CodeStore(Path(sys.argv[1]))
codes = BlockCodes(data=torch.zeros(10, 1, 256, dtype=torch.uint8), scales=torch.zeros(10, 1), zero_points=None)
try:
    for _ in range(3):
        store.append("w", codes)
except GemmaExportError as error:
    print(type(error).__name__, error.exit_code, error)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file size limits")
def test_a_full_disk(tmp_path: Path) -> None:
    said = run_child(_LIMITED, tmp_path)
    assert said.startswith("ResourceExhaustedError 5 calibrated weights of w cannot be kept")
    assert list(tmp_path.iterdir()) == []
