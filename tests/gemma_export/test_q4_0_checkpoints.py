"""Fine-tunes for Q4_0: seen before anything is quantised, and stored to the last bit where that is asked for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import checkpoints
import ml_dtypes
import numpy as np
import onnx
import pytest
from programs import gemma_export

from gemma_export.pipeline import export
from gemma_export.planning import plan_export
from gemma_export.precision import SCHEMES, WeightOptions, WeightScheme, grid_warning
from gemma_export.precision.q4_0 import lies_on_grid
from gemma_export.request import ExportRequest

_SIZES = {"hidden_size": 64, "intermediate_size": 96}
_EXACT = WeightOptions(scheme="int4", block_size=32, symmetric=True)
_TYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


def grid(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Codes from -8 to 7 times a float16 scale for each block of 32, float32."""
    rows, columns = shape
    codes = generator.integers(-8, 8, (rows, columns // 32, 32))
    scales = generator.uniform(0.005, 0.02, (rows, columns // 32, 1)).astype(np.float16).astype(np.float32)
    weights: np.ndarray = (codes * scales).astype(np.float32).reshape(rows, columns)
    return weights


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """All matrices on the grid, rounded to bfloat16 as such checkpoints are."""
    generator = np.random.default_rng(7)
    found = checkpoints.tensors({**checkpoints.CONFIG, **_SIZES})
    return {
        name: array if array.ndim == 1 else grid(array.shape, generator).astype(ml_dtypes.bfloat16)
        for name, array in found.items()
    }


@pytest.fixture(scope="module")
def trained(weights: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("q4_0") / "model", weights=weights, **_SIZES)


def warnings_of(checkpoint: Path, **request: Any) -> list[str]:
    plan = plan_export(ExportRequest(checkpoint=checkpoint, **request))
    return [warning for warning in plan.warnings if "Q4_0" in warning]


@pytest.mark.parametrize("dtype", list(_TYPES))
def test_the_grid_is_seen_through_the_rounding_of_each_type(dtype: str) -> None:
    blocks = grid((64, 32), np.random.default_rng(0))
    assert lies_on_grid(blocks.astype(_TYPES[dtype]).astype(np.float32))
    # a block of zeros is on every grid
    blocks[3] = 0
    assert lies_on_grid(blocks.astype(_TYPES[dtype]).astype(np.float32))


def test_other_weights_are_on_no_grid() -> None:
    generator = np.random.default_rng(0)
    assert not lies_on_grid(generator.standard_normal((64, 32)).astype(np.float32))
    assert not lies_on_grid(np.zeros((64, 32), np.float32))
    blocks = grid((64, 32), generator)
    # one weight between two codes, in one block
    blocks[5, 9] = 0.55 * np.abs(blocks[5]).max()
    blocks[5, 10] = 0.27 * np.abs(blocks[5]).max()
    assert not lies_on_grid(blocks)
    # 5 bits
    assert not lies_on_grid(generator.integers(-16, 16, (64, 32)).astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_damaged_weights_are_on_no_grid(value: float) -> None:
    blocks = grid((64, 32), np.random.default_rng(0))
    blocks[9, 3] = value
    assert not lies_on_grid(blocks)


def test_numbers_that_cannot_be_divided_are_on_no_grid() -> None:
    blocks = np.float32(2.0**-149) * np.arange(-16, 16, dtype=np.float32).reshape(1, 32)
    assert not lies_on_grid(blocks)


def test_other_layouts_are_warned_of(trained: Path) -> None:
    (told,) = warnings_of(trained, weights=WeightOptions(scheme="int4"))
    assert "--int4 --block-size 32 --symmetric stores them exactly" in told
    (told,) = warnings_of(trained, weights=dataclasses.replace(_EXACT, symmetric=None))
    assert "--int4 --symmetric stores" in told
    (told,) = warnings_of(trained, weights=dataclasses.replace(_EXACT, quantiser="rtn"))
    assert "--int4 --quantizer search stores" in told
    (told,) = warnings_of(trained, weights=dataclasses.replace(_EXACT, activation_aware=True))
    assert "--int4, without --activation-aware, stores" in told


def test_nothing_is_said_where_nothing_is_lost(trained: Path, tmp_path: Path) -> None:
    assert warnings_of(trained, weights=_EXACT) == []
    assert warnings_of(trained, weights=WeightOptions(scheme="int8")) == []
    assert warnings_of(trained) == []
    assert warnings_of(trained, weights=WeightOptions(scheme="int4"), synthetic_seed=0) == []
    ordinary = checkpoints.write(tmp_path / "ordinary")
    assert warnings_of(ordinary, weights=WeightOptions(scheme="int4")) == []


@pytest.mark.parametrize(
    ("repository", "told"),
    [("google/gemma-3-1b-it-qat-q4_0-unquantized", True), ("google/gemma-3-1b-it", False), (None, False)],
)
def test_weights_that_are_not_here_are_known_by_their_name(repository: str | None, told: bool) -> None:
    scheme: WeightScheme = SCHEMES["int4"]
    assert bool(grid_warning(scheme, None, {}, repository)) == told
    exact = dataclasses.replace(scheme, block_size=32, symmetric=True)
    assert grid_warning(exact, None, {}, repository) == ()


def test_the_command_line_tells_before_it_exports(trained: Path, tmp_path: Path) -> None:
    result = gemma_export("--checkpoint", trained, "--int4", "--dry-run", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (told,) = [warning for warning in json.loads(result.stdout)["warnings"] if "Q4_0" in warning]
    assert f"warning: {told}" in result.stderr.splitlines()


@pytest.mark.parametrize(("precision", "suffix", "shift"), [(None, "_q4", 0), ("fp16", "_q4f16", 6)])
def test_an_export_holds_the_weights_to_the_last_bit(
    precision: str | None, suffix: str, shift: int, trained: Path, weights: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """bfloat16's rounding of what is stored gives the checkpoint, the embedding and the stream's factor included."""
    export(
        ExportRequest(
            checkpoint=trained,
            precision=precision,
            weights=_EXACT,
            residual_scale="auto" if precision is None else str(shift),
            output=tmp_path / "out",
        )
    )
    graph = onnx.load(tmp_path / f"out/onnx/model{suffix}.onnx").graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            data, scales = (onnx.numpy_helper.to_array(stored[name]) for name in node.input[1:3])
            assert scales.dtype == (np.float32 if precision is None else np.float16)
            codes = np.stack((data & 15, data >> 4), axis=-1).reshape(*data.shape[:2], 32)
            values = (codes.astype(np.float32) - 8) * scales.astype(np.float32).reshape(*data.shape[:2], 1)
            found[node.input[1]] = values.reshape(len(data), -1)
    assert len(found) == 2 * 5 + 1
    for name, values in found.items():
        layer = name.split(".")[2]
        if "qkv_proj" in name:
            prefix = f"model.layers.{layer}.self_attn"
            expected = np.concatenate([weights[f"{prefix}.{part}_proj.weight"] for part in "qkv"])
        else:
            expected = weights[name.partition(".weight")[0] + ".weight"]
        factor = 2.0**shift if "o_proj" in name or "down_proj" in name else 1.0
        assert ((values * factor).astype(ml_dtypes.bfloat16) == expected).all(), name
