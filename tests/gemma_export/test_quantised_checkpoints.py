"""Checkpoints that are quantised already: exported with exactly their codes, scales and zero points, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import tolerances
from decoders import Graph, reference_logits
from onnx import numpy_helper
from quantised_checkpoints import CONFIG, Layout, Matrix, Quantised, write

from gemma_export.pipeline import ExportRequest, ExportResult, export
from gemma_export.precision import WeightOptions
from gemma_runtime import read_manifest
from gemma_validation import measure_drift

_LAYOUTS = {
    "gptq": Layout(),
    "gptq v2 zeros": Layout(symmetric=False, version="gptq_v2", group_size=64),
    "gptq zeros": Layout(symmetric=False),
    "gptq one group": Layout(group_size=-1, symmetric=False),
    "gptq groups of 64": Layout(group_size=64),
    "gptq 8 bits": Layout(bits=8, group_size=64),
    "gptq 8 bits zeros": Layout(bits=8, symmetric=False),
    "gptq by order": Layout(desc_act=True),
    "gptq by order zeros": Layout(desc_act=True, symmetric=False, group_size=64),
    "gptq by order 8 bits": Layout(desc_act=True, bits=8),
    "awq": Layout(method="awq", symmetric=False),
    "awq groups of 64": Layout(method="awq", symmetric=False, group_size=64),
}
_TARGETS = {"ort": ("ort", None), "portable": ("portable", None), "ort qdq": ("ort", "qdq")}


def _export(quantised: Quantised, output: Path, **options: object) -> ExportResult:
    fields = {"precision": None, "residual_scale": "off"} if options.get("precision") else {}
    return export(ExportRequest(checkpoint=quantised.directory, output=output, **{**fields, **options}))


def _initializers(folder: Path) -> dict[str, np.ndarray]:
    file = folder / read_manifest(folder).graph("main").file
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}


def _all_positions(folder: Path, root: Path) -> Graph:
    """The graph with every position, its products without 8-bit activations: what is left is float arithmetic."""
    model = onnx.load(folder / read_manifest(folder).graph("all").file)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    onnx.save(model, root / "all.onnx")
    return Graph(root / "all.onnx")


@pytest.mark.parametrize("target", sorted(_TARGETS))
@pytest.mark.parametrize("name", sorted(_LAYOUTS))
def test_the_folder_computes_what_the_checkpoint_means(name: str, target: str, tmp_path: Path) -> None:
    layout = _LAYOUTS[name]
    quantised = write(tmp_path / "checkpoint", layout)
    word, weight_format = _TARGETS[target]
    options = WeightOptions(scheme=f"int{layout.bits}", format=weight_format)
    result = _export(quantised, tmp_path / "out", target=word, weights=options)
    data = next(file for file in result.plan.files if file.path.endswith("_data"))
    assert data.exact
    assert (tmp_path / "out" / data.path).stat().st_size == data.nbytes
    ids = np.random.default_rng(1).integers(108, 3072, (2, 24))
    expected = reference_logits(quantised.model, ids)
    found, _ = _all_positions(tmp_path / "out", tmp_path).step(ids, np.ones_like(ids))
    if target == "ort qdq" or word == "portable":
        # sessions fold DequantizeLinear into products with 8-bit activations, unless they are told not to
        assert np.abs(found - expected).max() <= tolerances.INT8_ACTIVATIONS * expected.std()
    else:
        assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * expected.std()
        assert measure_drift(expected, found).mean_kl <= tolerances.FP32_MEAN_KL
