"""Norm gains are the checkpoint's in every precision, and one that is not is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from local_references import weights_of
from stored_edits import alter, copy_of

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.weights import Constant, Weight
from gemma_runtime.manifest import Manifest, read_manifest
from gemma_validation.errors import MismatchError
from gemma_validation.findings import Check, Localisation
from gemma_validation.stored import compare_stored
from gemma_validation.stored.gains import compare_gains, gains_check

_NORM = "model.layers.2.post_attention_layernorm"


def check(folder: Path, manifest: Manifest | None = None) -> Check:
    return gains_check(compare_gains(folder, manifest or read_manifest(folder), weights_of(BUILTIN_DIRECTORY)))


def larger(gains: np.ndarray) -> None:
    gains *= gains.dtype.type(1.05)


# a rescaled residual stream, gains within the graphs' own files, standard operators
@pytest.mark.parametrize(
    "name", ["tiny_fp32", "tiny_fp16", "tiny_int4", "tiny_int8_dynamic", "tiny_qdq", "tiny_portable"]
)
def test_good_folders_pass(name: str, request: pytest.FixtureRequest) -> None:
    found = check(request.getfixturevalue(name))
    assert (found.group, found.name, found.outcome, found.measured) == ("structure", "norm gains", "passed", 0)
    # two for each of 4 layers and the last, in one data file or in each of 5 graphs
    assert found.message == f"all {45 if name == 'tiny_fp16' else 9} gains are the checkpoint's"


@pytest.mark.parametrize("name", ["tiny_int4", "tiny_fp16"])
def test_a_gain_that_is_off_is_named_with_its_layer(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = copy_of(request.getfixturevalue(name), tmp_path)
    alter(folder, f"{_NORM}.gain", larger)
    found = check(folder)
    assert found.outcome == "failed"
    assert f"{_NORM} in {read_manifest(folder).graph('main').file.rpartition('/')[2]} is off by 0.05" in found.message
    assert found.measured == pytest.approx(0.05, abs=2e-3)

    nothing = Localisation(points=(), culprit=None, message="nothing stands out")
    stored = compare_stored(folder, read_manifest(folder), weights_of(BUILTIN_DIRECTORY))
    told = stored.named(nothing)
    assert told.culprit == "layers.2.mlp_residual"
    assert f"{_NORM} in " in told.message
    assert told.message.endswith("; nothing stands out")
    known = dataclasses.replace(nothing, culprit="layers.0.attn_residual")
    assert stored.named(known).culprit == "layers.0.attn_residual"


def test_a_gain_that_is_not_finite(tiny_int4: Path, tmp_path: Path) -> None:
    def spoil(gains: np.ndarray) -> None:
        gains[3] = np.nan

    folder = copy_of(tiny_int4, tmp_path)
    alter(folder, "model.norm.gain", spoil)
    found = check(folder)
    assert (found.outcome, found.measured is not None and np.isfinite(found.measured)) == ("failed", True)
    assert "model.norm in " in found.message


def test_norms_that_calibration_changes_are_left_out_with_the_reason(tiny_int4: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_int4, tmp_path)
    alter(folder, f"{_NORM}.gain", larger)
    manifest = read_manifest(folder)
    options = {**manifest.precision.options, "activation_aware": {}}
    manifest = dataclasses.replace(manifest, precision=dataclasses.replace(manifest.precision, options=options))
    found = check(folder, manifest)
    assert found.outcome == "passed"
    assert found.message == (
        "all 1 gains are the checkpoint's; 8 left out: calibration folds channel scales into the norms of layers"
    )


def test_another_checkpoint(tiny_int4: Path) -> None:
    import torch

    def none(name: str) -> Weight:
        raise KeyError(name)

    def short(_: str) -> Weight:
        return Constant(torch.zeros(8), "short")

    with pytest.raises(MismatchError, match=r"the checkpoint has no model\.layers\.0\.input_layernorm\.weight"):
        compare_gains(tiny_int4, read_manifest(tiny_int4), none)
    with pytest.raises(MismatchError, match=r"as \[256\], the checkpoint has \[8\]"):
        compare_gains(tiny_int4, read_manifest(tiny_int4), short)
