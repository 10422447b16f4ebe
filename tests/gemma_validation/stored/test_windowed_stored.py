"""Four norms a layer, norms of heads, projections that are not packed: what is stored is the checkpoint's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_references import weights_of
from stored_edits import alter, copy_of

from gemma_export.precision import WeightOptions
from gemma_runtime.manifest import read_manifest
from gemma_validation.findings import Localisation
from gemma_validation.stored import StoredWeights, compare_stored
from gemma_validation.stored.comparison import point_of

# the stream is stored times 2^-5
_FP16: dict[str, Any] = {"precision": "fp16", "residual_scale": "5"}
_NOTHING = Localisation(points=(), culprit=None, message="nothing stands out")


@pytest.fixture
def compared(windowed_checkpoint: Callable[[str], Path]) -> Callable[[Path, str], StoredWeights]:
    return lambda folder, config: compare_stored(folder, read_manifest(folder), weights_of(windowed_checkpoint(config)))


@pytest.mark.parametrize(
    ("config", "options", "matrices", "gains"),
    [
        # 4 norms a layer, the last; of gemma3 2 more. Constants of fp16 lie in each of five graphs
        ("gemma2", _FP16, 0, 21),
        ("gemma2 types", {"weights": WeightOptions(scheme="int4")}, 21, 17),
        ("gemma3", {**_FP16, "weights": WeightOptions(scheme="int4")}, 50, 43),
        ("gemma3", {"target": "portable", "keep_functions": True, **_FP16}, 0, 43),
        ("gemma3 nested", {"weights": WeightOptions(scheme="int8-dynamic")}, 30, 25),
    ],
    ids=str,
)
def test_good_folders_pass(
    config: str,
    options: dict[str, Any],
    matrices: int,
    gains: int,
    windowed_folder: Callable[..., Path],
    compared: Callable[[Path, str], StoredWeights],
) -> None:
    found = compared(windowed_folder(config, **options), config)
    blocks, norms = found.checks
    assert blocks.outcome == ("passed" if matrices else "skipped"), blocks.message
    assert not matrices or f"of {matrices} matrices are" in blocks.message
    assert norms.outcome == "passed", norms.message
    assert int(norms.message.split()[1]) % gains == 0
    assert found.wrong == ()
    assert found.post_norms


def test_a_post_norm_without_the_streams_scale(
    windowed_folder: Callable[..., Path], compared: Callable[[Path, str], StoredWeights], tmp_path: Path
) -> None:
    """Norms behind branches carry 2^-k in their gains; one that does not is named with its half."""
    folder = copy_of(windowed_folder("gemma2", **_FP16), tmp_path)
    shift = read_manifest(folder).precision.options["residual_scale"]["shift"]

    def unscaled(gains: np.ndarray) -> None:
        gains *= gains.dtype.type(2.0**shift)

    alter(folder, "model.layers.3.post_attention_layernorm.gain", unscaled)
    found = compared(folder, "gemma2")
    assert f"post_attention_layernorm in model_fp16.onnx is off by {2**shift - 1}" in found.checks[1].message
    assert found.named(_NOTHING).culprit == "layers.3.attn_residual"


@pytest.mark.parametrize(
    ("norm", "culprit"),
    [
        ("self_attn.k_norm", "layers.2.attn_residual"),
        ("pre_feedforward_layernorm", "layers.2.mlp_residual"),
        ("post_feedforward_layernorm", "layers.2.mlp_residual"),
    ],
)
def test_a_gain_without_one(
    norm: str,
    culprit: str,
    windowed_folder: Callable[..., Path],
    compared: Callable[[Path, str], StoredWeights],
    tmp_path: Path,
) -> None:
    def less(gains: np.ndarray) -> None:
        gains -= gains.dtype.type(1)

    folder = copy_of(windowed_folder("gemma3"), tmp_path)
    alter(folder, f"model.layers.2.{norm}.gain", less)
    found = compared(folder, "gemma3")
    assert f"model.layers.2.{norm} in model.onnx is off by" in found.checks[1].message
    assert found.named(_NOTHING).culprit == culprit


@pytest.mark.parametrize("config", ["gemma2", "gemma3"])
def test_activation_aware_channels(
    config: str,
    windowed_folder: Callable[..., Path],
    compared: Callable[[Path, str], StoredWeights],
    tmp_path: Path,
) -> None:
    """Calibration scales columns of q, k and v, packed or not, and folds into the norm before the MLP."""
    folder = copy_of(windowed_folder(config, weights=WeightOptions(scheme="int4", activation_aware=True)), tmp_path)
    manifest = read_manifest(folder)
    strengths = manifest.precision.options["activation_aware"]["strengths"]
    found = compared(folder, config)
    assert [check.outcome for check in found.checks] == ["passed", "passed"], [check.message for check in found.checks]
    folded = sum(any(strengths[name]) for name in strengths if name.endswith(("q_proj.weight", "gate_proj.weight")))
    assert folded
    assert f"{folded} left out" in found.checks[1].message

    def double(scales: np.ndarray) -> None:
        scales[np.abs(scales).argmax()] *= 2

    packed = "v" if config == "gemma3" else "qkv"
    alter(folder, f"model.layers.1.self_attn.{packed}_proj.weight.scales", double)
    found = compared(folder, config)
    assert "model.layers.1.self_attn." in found.checks[0].message
    assert found.checks[0].outcome == "failed"


@pytest.mark.parametrize(
    ("tensor", "half"),
    [
        ("post_attention_layernorm", "attn_residual"),
        ("pre_feedforward_layernorm", "mlp_residual"),
        ("self_attn.q_norm", "attn_residual"),
    ],
)
def test_halves_of_layers_with_four_norms(tensor: str, half: str) -> None:
    assert point_of(f"model.layers.7.{tensor}.weight", post_norms=True) == f"layers.7.{half}"
