"""Stored blocks are the checkpoint's in every format, and one that is not is named."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import CONFIGS, reference_model, write_checkpoint
from local_references import weights_of
from quantised_checkpoints import Layout, write
from stored_edits import alter, copy_of

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.weights import Constant
from gemma_runtime.manifest import read_manifest
from gemma_validation.errors import FolderUnreadableError, MismatchError
from gemma_validation.findings import Check, Localisation
from gemma_validation.stored import compare_stored
from gemma_validation.stored.blocks import _distances, blocks_check, compare_blocks
from gemma_validation.stored.comparison import point_of
from gemma_validation.stored.matrices import StoredMatrix
from gemma_validation.stored.sources import Sources

_QKV = "model.layers.1.self_attn.qkv_proj.weight"


def check(folder: Path, checkpoint: Path = BUILTIN_DIRECTORY) -> Check:
    return blocks_check(compare_blocks(folder, read_manifest(folder), weights_of(checkpoint)))


def exported(checkpoint: Path, output: Path, **options: Any) -> Path:
    from gemma_export.pipeline import ExportRequest, export

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(ExportRequest(checkpoint=checkpoint, output=output, **options)).folder.directory


@pytest.mark.parametrize(
    ("folder", "matrices", "steps"),
    # a searched scale clips the largest weights; rounding alone moves by half a step, or one at the end of the range
    [("tiny_int4", 21, 2.5), ("tiny_int8_dynamic", 21, 1.5), ("tiny_qdq", 29, 2.5)],
)
def test_good_folders_pass(folder: str, matrices: int, steps: float, request: pytest.FixtureRequest) -> None:
    result = check(request.getfixturevalue(folder))
    assert result.outcome == "passed"
    # 4 layers of 5 or, unpacked, 7 matrices, and one table that is the head too
    assert f"of {matrices} matrices" in result.message
    assert result.measured is not None
    assert 0.4 < result.measured < steps


def test_nothing_to_compare(tiny_fp32: Path) -> None:
    assert check(tiny_fp32).outcome == "skipped"


def test_a_doubled_scale_is_named(tiny_int4: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_int4, tmp_path)
    # 512 rows of query, 128 of key, 128 of value; two blocks of 128 a row

    def double(scales: np.ndarray) -> None:
        scales.reshape(768, 2)[512 + 7, 1] *= 2

    alter(folder, f"{_QKV}.scales", double)
    result = check(folder)
    assert result.outcome == "failed"
    assert "1 of 28672 blocks" in result.message
    assert "model.layers.1.self_attn.k_proj.weight, row 7, columns 128 to 255: " in result.message
    assert result.measured is not None
    assert result.bound is not None
    assert result.measured > 1.5 * result.bound


@pytest.mark.parametrize("folder", ["tiny_int4", "tiny_qdq"])
def test_a_zeroed_block_is_named(folder: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    copy = copy_of(request.getfixturevalue(folder), tmp_path)
    name = "model.layers.3.mlp.down_proj.weight"

    def zero(scales: np.ndarray) -> None:
        # [rows, blocks] or, in standard operators, [blocks, rows]
        by_row = scales.reshape(256, 4) if folder == "tiny_int4" else scales.reshape(4, 256).T
        by_row[200, 2] = 0

    alter(copy, f"{name}.scales", zero)
    result = check(copy)
    assert result.outcome == "failed"
    assert f"1 of 28672 blocks are not the checkpoint's: {name}, row 200, columns 256 to 383: " in result.message


def test_many_bad_blocks_are_counted(tiny_int4: Path, tmp_path: Path) -> None:
    """A whole matrix that is wrong is no measure for itself."""
    folder = copy_of(tiny_int4, tmp_path)

    def double(scales: np.ndarray) -> None:
        scales *= 2

    alter(folder, f"{_QKV}.scales", double)
    result = check(folder)
    assert result.outcome == "failed"
    assert "1536 of 28672 blocks" in result.message
    assert result.message.endswith("; 1533 more")


def test_a_nan_is_a_bad_block(tiny_int4: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_int4, tmp_path)

    def spoil(scales: np.ndarray) -> None:
        scales[0] = np.nan

    alter(folder, f"{_QKV}.scales", spoil)
    result = check(folder)
    assert "model.layers.1.self_attn.q_proj.weight, row 0, columns 0 to 127" in result.message
    assert result.measured is not None
    assert np.isfinite(result.measured)


def test_dynamic_rows(tiny_int8_dynamic: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_int8_dynamic, tmp_path)

    def double(scales: np.ndarray) -> None:
        scales[5] *= 2

    alter(folder, "model.layers.0.mlp.up_proj.weight.scales", double)
    assert "model.layers.0.mlp.up_proj.weight, row 5, columns 0 to 255" in check(folder).message


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rescaled_streams_and_checkpoints_in_integers(precision: str, tmp_path: Path) -> None:
    """Codes of a GPTQ checkpoint with an order of its own are its numbers exactly, also times 2^-k."""
    from gemma_export.precision import WeightOptions

    quantised = write(tmp_path / "gptq", Layout(desc_act=True))
    folder = exported(
        quantised.directory,
        tmp_path / "folder",
        precision=precision,
        residual_scale="5" if precision == "fp16" else "auto",
        weights=WeightOptions(scheme="int4"),
    )
    result = check(folder, quantised.directory)
    assert result.outcome == "passed"
    assert result.measured is not None
    # the table is rounded here, its blocks are not the checkpoint's own
    assert result.measured < 2.5

    def double(scales: np.ndarray) -> None:
        scales[3] *= 2

    name = "model.layers.1.mlp.down_proj.weight"
    alter(folder, f"{name}.scales", double)
    assert (
        f"1 of {result.message.split()[0]} blocks are not the checkpoint's: {name}, row 1, "
        in check(folder, quantised.directory).message
    )


def matrix(name: str, values: torch.Tensor) -> StoredMatrix:
    """As if it had been stored without rounding."""
    return StoredMatrix(
        name=name,
        rows=values.shape[0],
        columns=values.shape[1],
        block_size=32,
        bits=4,
        symmetric=True,
        smallest_scale=0.0,
        order=None,
        open=lambda: lambda first, last: values[first:last].numpy(),
    )


def test_calibrated_channels_are_undone() -> None:
    """Factors on columns of every projection, and their inverses on the rows that make those channels."""
    torch.manual_seed(0)
    shapes = {"q": (128, 64), "k": (64, 64), "v": (64, 64), "o": (64, 128), "gate": (96, 64), "up": (96, 64)}
    shapes["down"] = (64, 96)
    where = {part: "self_attn" if part in "qkvo" else "mlp" for part in shapes}
    names = {part: f"model.layers.0.{where[part]}.{part}_proj.weight" for part in shapes}
    weights = {names[part]: torch.randn(shape) for part, shape in shapes.items()}
    by_value = torch.exp2(torch.randn(2, 32)).repeat_interleave(2, 0)
    columns = {part: torch.exp2(torch.randn(shape[1])) for part, shape in shapes.items()}
    columns["k"] = columns["v"] = columns["q"]
    columns["gate"] = columns["up"]
    columns["o"] = by_value.reshape(-1)
    stored = {part: weights[names[part]] * columns[part] for part in shapes}
    stored["up"] /= columns["down"][:, None]
    stored["v"] /= by_value[::2].reshape(-1)[:, None]
    packed = "model.layers.0.self_attn.qkv_proj.weight"
    matrices = {names[part]: matrix(names[part], stored[part]) for part in ("o", "gate", "up", "down")}
    matrices[packed] = matrix(packed, torch.cat([stored[part] for part in "qkv"]))
    options = {"shift": 0, "kv_heads": 2, "head_dim": 32}
    sources = Sources(lambda name: Constant(weights[name], name), matrices, calibrated=True, **options)
    plain = Sources(lambda name: Constant(weights[name], name), matrices, calibrated=False, **options)
    for name, one in matrices.items():
        assert _distances(one, sources.matrix(name)).steps.max() < 1e-3, name
        assert _distances(one, plain.matrix(name)).steps.max() > 1, name


def test_another_checkpoint(tiny_int4: Path, tmp_path: Path) -> None:
    write_checkpoint(reference_model(CONFIGS["gqa"]), tmp_path, CONFIGS["gqa"], BUILTIN_DIRECTORY)
    with pytest.raises(
        MismatchError, match=r"stores model\.embed_tokens\.weight as \[3072, 256\], the checkpoint has \[3072, 48\]"
    ):
        check(tiny_int4, tmp_path)


def test_a_matrix_that_the_checkpoint_lacks(tiny_int4: Path) -> None:
    def weights(name: str) -> Constant:
        raise KeyError(name)

    with pytest.raises(MismatchError, match=r"the checkpoint has no model\.embed_tokens\.weight"):
        compare_blocks(tiny_int4, read_manifest(tiny_int4), weights)


def test_data_that_ends_early(tiny_int4: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_int4, tmp_path)
    data = next((folder / "onnx").glob("*.onnx_data"))
    data.write_bytes(data.read_bytes()[:100_000])
    with pytest.raises(FolderUnreadableError, match=r"expected \d+ bytes in .*onnx_data, found"):
        check(folder)
    data.unlink()
    with pytest.raises(FolderUnreadableError, match=r"onnx_data cannot be read"):
        check(folder)


def test_only_the_main_graph_is_read(tiny_int4: Path) -> None:
    """Twins share its bytes."""
    manifest = read_manifest(tiny_int4)
    alone = dataclasses.replace(manifest, graphs=(manifest.graph("main"),))
    weights = weights_of(BUILTIN_DIRECTORY)
    assert compare_blocks(tiny_int4, alone, weights) == compare_blocks(tiny_int4, manifest, weights)


def test_a_bad_block_names_its_half(tiny_int4: Path, tmp_path: Path) -> None:
    """One block of thousands does not stand out by what its layer computes."""
    folder = copy_of(tiny_int4, tmp_path)

    def double(scales: np.ndarray) -> None:
        scales[np.abs(scales).argmax()] *= 2

    alter(folder, "model.layers.2.mlp.down_proj.weight.scales", double)
    weights = weights_of(BUILTIN_DIRECTORY)
    nothing = Localisation(points=(), culprit=None, message="no point stands out")
    found = compare_stored(folder, read_manifest(folder), weights).named(nothing)
    assert found.culprit == "layers.2.mlp_residual"
    assert "model.layers.2.mlp.down_proj.weight, row" in found.message
    assert compare_stored(tiny_int4, read_manifest(tiny_int4), weights).named(nothing) == nothing


@pytest.mark.parametrize(
    ("tensor", "point"),
    [
        ("model.layers.12.self_attn.v_proj.weight", "layers.12.attn_residual"),
        ("model.layers.0.mlp.gate_proj.weight", "layers.0.mlp_residual"),
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "logits"),
        ("model.layers.7.input_layernorm.weight", "layers.7.attn_residual"),
        ("model.layers.7.post_attention_layernorm.weight", "layers.7.mlp_residual"),
        ("model.norm.weight", "norm"),
        ("model.layers.7.rotary.weight", None),
    ],
)
def test_the_point_behind_a_tensor(tensor: str, point: str | None) -> None:
    assert point_of(tensor, post_norms=False) == point


def test_zero_points_off_by_one_move_a_whole_matrix(tiny_int4: Path, tmp_path: Path) -> None:
    """Each weight is within four steps of the checkpoint's; all of them are on one side."""
    folder = copy_of(tiny_int4, tmp_path)

    def shift(packed: np.ndarray) -> None:
        low, high = np.minimum((packed & 15) + 1, 15), np.minimum((packed >> 4) + 1, 15)
        packed[:] = low | high << 4

    alter(folder, "model.layers.3.self_attn.o_proj.weight.zero_points", shift)
    weights = weights_of(BUILTIN_DIRECTORY)
    found = compare_blocks(folder, read_manifest(folder), weights)
    assert [one.tensor for one in found.shifted] == ["model.layers.3.self_attn.o_proj.weight"]
    assert -1.1 < found.shifted[0].steps < -0.7
    assert blocks_check(found).outcome == "failed"
