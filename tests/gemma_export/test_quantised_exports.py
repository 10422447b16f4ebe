"""Whole exports of the built-in model with integer weights: they generate, and stay near PyTorch float32."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import tolerances
from decoders import Graph, builtin_reference, reference_logits

from gemma_export.artifact import verify_folder
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, export
from gemma_export.precision import WeightOptions
from gemma_runtime import Gemma, read_manifest
from gemma_runtime.tokenizer import load_tokenizer
from gemma_validation import measure_drift

# (scheme, activations) -> suffix, bound of the mean KL
_EXPORTS = {
    ("int4", "fp32"): ("_q4", tolerances.INT4_MEAN_KL),
    ("int8", "fp32"): ("_int8", tolerances.INT8_MEAN_KL),
    ("int8-dynamic", "fp32"): ("_int8dyn", tolerances.INT8_DYNAMIC_MEAN_KL),
    ("int4", "fp16"): ("_q4f16", tolerances.INT4_MEAN_KL),
    ("int8", "fp16"): ("_int8f16", tolerances.INT8_MEAN_KL),
}
# this file's own text: written after the model was trained
_TEXT = Path(__file__).read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=sorted(_EXPORTS), ids="-".join)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, str]]:
    scheme, activations = request.param
    output = tmp_path_factory.mktemp("quantised") / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = WeightOptions(scheme=scheme)
        export(ExportRequest(variant="tiny", precision=activations, weights=options, output=output))
    return output, request.param


def test_the_folder_is_whole_and_generates(exported: tuple[Path, tuple[str, str]]) -> None:
    folder, key = exported
    assert verify_folder(folder).extra_files == ()
    manifest = read_manifest(folder)
    assert manifest.graph("main").file == f"onnx/model{_EXPORTS[key][0]}.onnx"
    assert manifest.precision.options["scheme"] == key[0]
    assert manifest.min_onnxruntime == "1.23.0"
    assert manifest.providers == (("cpu",) if key[1] == "fp32" else ("cpu", "cuda"))
    text = Gemma(folder).generate("def read_lines(path):", max_new_tokens=24).text
    assert len(text.split()) > 3


def test_drift(exported: tuple[Path, tuple[str, str]]) -> None:
    folder, key = exported
    ids = np.array([load_tokenizer(BUILTIN_DIRECTORY).encode(_TEXT)[:512]])
    graph = Graph(folder / read_manifest(folder).graph("all").file)
    found, _ = graph.step(ids, np.ones_like(ids))
    drift = measure_drift(reference_logits(builtin_reference(), ids), found)
    assert 0 < drift.mean_kl <= _EXPORTS[key][1]


def test_the_tied_table_is_one_range_of_the_data_file(exported: tuple[Path, tuple[str, str]]) -> None:
    folder, key = exported
    model = onnx.load(folder / f"onnx/model{_EXPORTS[key][0]}.onnx", load_external_data=False)
    places = {
        tensor.name: tuple(entry.value for entry in tensor.external_data if entry.key != "location")
        for tensor in model.graph.initializer
        if tensor.name.startswith("model.embed_tokens.weight.")
    }
    assert places["model.embed_tokens.weight.table"] == places["model.embed_tokens.weight.data"]
    assert len(places["model.embed_tokens.weight.data"]) == 2
    assert "model.embed_tokens.weight" not in {tensor.name for tensor in model.graph.initializer}
