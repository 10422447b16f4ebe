"""VaultGemma: both references are transformers', its exports pass, and its norm before the MLP is known by its name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graph_edits import attribute, edited, named
from local_references import layers_of, opened, weights_of
from reference_exports import structure_of
from stored_edits import alter, copy_of
from windowed_decoders import VAULT_CONFIG, windowed_reference, write_windowed_checkpoint

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.precision import WeightOptions
from gemma_runtime.manifest import read_manifest
from gemma_validation import validate
from gemma_validation.documents import Document
from gemma_validation.findings import Localisation
from gemma_validation.localise import localise
from gemma_validation.reference import TransformersReference
from gemma_validation.stored import StoredWeights, compare_stored

_NOTHING = Localisation(points=(), culprit=None, message="nothing stands out")
_NORM = "pre_feedforward_layernorm"


@pytest.fixture(scope="module")
def checkpoint(windowed_checkpoint: Callable[[str], Path]) -> Path:
    return windowed_checkpoint("vaultgemma")


@pytest.fixture(scope="module")
def exported(windowed_folder: Callable[..., Path]) -> Callable[..., Path]:
    return functools.partial(windowed_folder, "vaultgemma")


def test_references_are_transformers_own(checkpoint: Path) -> None:
    """Whole and layer by layer, past the window."""
    ids = tuple(int(token) for token in np.random.default_rng(4).integers(3, 3000, 40))
    with torch.no_grad():
        expected = windowed_reference(VAULT_CONFIG)(torch.tensor([ids])).logits[0].numpy()
    for source in (layers_of(checkpoint), TransformersReference(opened(checkpoint))):
        source.prepare([Document(slice="code", name="x", token_ids=ids)])
        # the same operations in float32, cut into other pieces
        assert np.abs(source.logits(0, 0, len(ids)) - expected).max() < 1e-5 * expected.std()


def test_no_window_in_any_layer(tmp_path: Path) -> None:
    """And none in config.json: transformers makes a mask of one all the same."""
    config = {**VAULT_CONFIG, "layer_types": ["full_attention"] * 3, "sliding_window": None}
    model = windowed_reference({**config, "sliding_window": 9})
    directory = write_windowed_checkpoint(model, tmp_path / "full", config, BUILTIN_DIRECTORY)
    ids = tuple(range(300, 340))
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    for source in (layers_of(directory), TransformersReference(opened(directory))):
        source.prepare([Document(slice="code", name="x", token_ids=ids)])
        assert np.abs(source.logits(0, 0, len(ids)) - expected).max() < 1e-5 * expected.std()


def test_an_export_passes(exported: Callable[..., Path], checkpoint: Path) -> None:
    report = validate(exported(), reference=checkpoint, localise=True)
    assert report.verdict == "passed", report.reasons
    assert {check.outcome for check in report.checks} <= {"passed", "skipped"}
    assert report.localisation is not None
    # halves of three layers, the embedding, the norm, the head
    assert len(report.localisation.points) == 9
    assert report.localisation.culprit is None, report.localisation.message


def test_one_half_s_defect(exported: Callable[..., Path], checkpoint: Path, tmp_path: Path) -> None:
    def other_epsilon(model: onnx.ModelProto) -> None:
        # the norm that the sum behind attention is fused with
        attribute(named(model, "layers.1.attn_residual"), "epsilon", 300.0)

    folder = edited(exported(), tmp_path / "edited", other_epsilon)
    text = Document(slice="code", name="x", token_ids=(2, *range(300, 340)))
    result = localise(folder, read_manifest(folder), layers_of(checkpoint), [text], provider="cpu")
    assert result.culprit == "layers.1.mlp_residual", result.message


def _stored(folder: Path, checkpoint: Path) -> StoredWeights:
    return compare_stored(folder, read_manifest(folder), weights_of(checkpoint))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        # the stream is stored times 2^-5, which no norm writes to
        ({"target": "directml", "precision": "fp16", "residual_scale": "5"}, "are the checkpoint's"),
        # channel scales are folded into the norm before the MLP
        ({"weights": WeightOptions(scheme="int4", activation_aware=True)}, "left out"),
    ],
    ids=["directml", "int4"],
)
def test_structure_and_stored_weights(
    options: dict[str, Any], told: str, exported: Callable[..., Path], checkpoint: Path
) -> None:
    folder = exported(**options)
    checks = structure_of(folder)
    assert [check.message for check in checks if check.outcome != "passed"] == []
    blocks, gains = _stored(folder, checkpoint).checks
    assert blocks.outcome == ("passed" if "weights" in options else "skipped"), blocks.message
    assert gains.outcome == "passed", gains.message
    assert told in gains.message


def test_a_norm_left_out_before_the_mlp(exported: Callable[..., Path], tmp_path: Path) -> None:
    def left_out(model: onnx.ModelProto) -> None:
        named(model, "model.layers.1.mlp.up_proj.Linear").input[0] = "layers.1.attn_residual"

    folder = edited(exported(), tmp_path / "edited", left_out)
    found = {check.name: check.message for check in structure_of(folder)}
    assert f"reads layers.1.attn_residual, expected model.layers.1.{_NORM}" in found["modules"]


def test_a_gain_without_one(exported: Callable[..., Path], checkpoint: Path, tmp_path: Path) -> None:
    def less(gains: np.ndarray) -> None:
        gains -= gains.dtype.type(1)

    folder = copy_of(exported(), tmp_path)
    alter(folder, f"model.layers.1.{_NORM}.gain", less)
    found = _stored(folder, checkpoint)
    assert f"model.layers.1.{_NORM} in model.onnx is off by" in found.checks[1].message
    assert found.named(_NOTHING).culprit == "layers.1.mlp_residual"
