"""A vision-language checkpoint as the reference: its text decoder, whole and layer by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from local_references import layers_of, opened
from safetensors.torch import load_file, save_file
from vision_checkpoints import WEIGHTS, vision_config, vision_reference, write_files
from windowed_decoders import WINDOWED_CONFIGS

from gemma_export.pipeline import ExportRequest, export
from gemma_runtime.manifest import read_manifest
from gemma_validation import validate
from gemma_validation.documents import Document
from gemma_validation.errors import MismatchError
from gemma_validation.reference import TransformersReference, find_reference, open_source

_TEXT = WINDOWED_CONFIGS["gemma3"]


def test_a_vision_language_checkpoint(tmp_path: Path) -> None:
    """What the whole model says of text is what both references say, and its export passes against them."""
    model = vision_reference(_TEXT)
    model.save_pretrained(tmp_path / "saved")
    tensors = load_file(tmp_path / "saved" / WEIGHTS)
    checkpoint = write_files(tmp_path / "checkpoint", vision_config(_TEXT), tensors)
    ids = tuple(int(token) for token in np.random.default_rng(4).integers(50, 3000, 40))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    for source in (layers_of(checkpoint), TransformersReference(opened(checkpoint))):
        source.prepare([Document(slice="code", name="x", token_ids=ids)])
        # the same operations in float32, cut into other pieces
        assert np.abs(source.logits(0, 0, len(ids)) - expected).max() < 1e-5 * expected.std()

    folder = tmp_path / "folder"
    export(ExportRequest(checkpoint=checkpoint, output=folder))
    report = validate(folder, reference=checkpoint, localise=True)
    assert report.verdict == "passed", report.reasons
    assert report.reference.kind == "transformers"
    assert report.localisation is not None
    assert report.localisation.culprit is None, report.localisation.message

    # of weights that no text goes through, too
    tower = next(name for name in tensors if "vision_tower" in name)
    save_file({**tensors, tower: tensors[tower] + 1}, checkpoint / WEIGHTS, metadata={"format": "pt"})
    manifest = read_manifest(folder)
    with pytest.raises(MismatchError, match=r"is not what the folder was exported from: model\.safetensors") as error:
        open_source(find_reference(folder, manifest, checkpoint), folder, manifest)
    assert error.value.exit_code == 3
