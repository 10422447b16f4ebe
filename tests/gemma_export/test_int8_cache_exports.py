"""Whole exports with an int8 cache: near PyTorch float32 in chunks, steps and padded batches; its bytes."""

from __future__ import annotations

import dataclasses
import functools
import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import tolerances
import torch
from decoders import (
    CONFIGS,
    Graph,
    builtin_reference,
    reference_choices,
    reference_logits,
    reference_model,
    write_checkpoint,
)
from folders import rewrite_manifest
from json_schemas import validated
from programs import assert_error, gemma_export, gemma_run

from gemma_export.artifact import verify_folder
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.errors import FolderError
from gemma_export.pipeline import ExportRequest, export
from gemma_export.planning import plan_export
from gemma_export.precision import WeightOptions
from gemma_runtime import Gemma, read_manifest
from gemma_runtime.tokenizer import load_tokenizer
from gemma_validation import measure_drift

# (weights, activations) -> bound of the mean KL, first releases of the main graph and of the batched twin
_EXPORTS = {
    (None, "fp32"): (tolerances.INT8_CACHE_MEAN_KL, "1.28.0"),
    (None, "fp16"): (tolerances.INT8_CACHE_MEAN_KL, "1.29.0"),
    ("int4", "fp32"): (tolerances.INT4_MEAN_KL, "1.28.0"),
    ("int8", "fp16"): (tolerances.INT8_MEAN_KL, "1.29.0"),
}
_TEXT = Path(__file__).read_text(encoding="utf-8")
_IDS = np.array([load_tokenizer(BUILTIN_DIRECTORY).encode(_TEXT)[:700]])


@functools.cache
def _expected() -> np.ndarray:
    return reference_logits(builtin_reference(), _IDS)


def _export(output: Path, **options: object) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(ExportRequest(kv_cache="int8", output=output, **options))  # type: ignore[arg-type]
    return output


@pytest.fixture(scope="module", params=list(_EXPORTS), ids=lambda key: "-".join(filter(None, key)))
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, tuple[str | None, str]]:
    scheme, activations = request.param
    output = tmp_path_factory.mktemp("cache") / "out"
    return _export(output, variant="tiny", precision=activations, weights=WeightOptions(scheme=scheme)), request.param


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _export(tmp_path_factory.mktemp("cache") / "out", variant="tiny")


def test_the_manifest_and_every_graph(exported: tuple[Path, tuple[str | None, str]]) -> None:
    folder, key = exported
    assert verify_folder(folder).extra_files == ()
    manifest = read_manifest(folder)
    assert {state.dtype for graph in manifest.graphs for state in graph.state} == {"int8"}
    assert manifest.precision.activation_dtype == {"fp32": "float32", "fp16": "float16"}[key[1]]
    # CUDA's kernel is not proven
    assert manifest.providers == ("cpu",)
    assert (manifest.graph("main").min_onnxruntime, manifest.graph("batched").min_onnxruntime) == (
        _EXPORTS[key][1],
        "1.32.0",
    )
    told = manifest.precision.options["kv_cache"]
    assert (told["dtype"], told["granularity"]) == ("int8", "channel")
    assert told["calibration"]["source"] == "built-in"
    # weights that no text calibrated
    assert "calibration" not in manifest.precision.options


def test_drift_in_chunks_and_steps(exported: tuple[Path, tuple[str | None, str]]) -> None:
    """Two chunks and the decode steps after them; the cache is what every later position reads."""
    folder, key = exported
    graph = Graph(folder / read_manifest(folder).graph("all").file)
    found = graph.chunks(_IDS[:, :690], 512)
    past = graph.step(_IDS[:, :690], np.ones((1, 690)))[1]
    assert {array.dtype for array in past} == {np.dtype(np.int8)}
    steps = []
    for position in range(690, 700):
        logits, past = graph.step(_IDS[:, position : position + 1], np.ones((1, position + 1)), past)
        steps.append(logits)
    found = np.concatenate([found, *steps], axis=1)
    drift = measure_drift(_expected(), found)
    assert 0 < drift.mean_kl <= _EXPORTS[key][0]


def test_one_shot_and_chunks_are_the_same(tiny: Path) -> None:
    """The kernel attends to the stored codes of a prompt too: how it is cut changes nothing."""
    graph = Graph(tiny / "onnx/model_all.onnx")
    whole, past = graph.step(_IDS, np.ones_like(_IDS))
    assert np.abs(graph.chunks(_IDS, 97) - whole).max() <= tolerances.FP32_LOGITS * whole.std()
    assert max(np.abs(array.astype(np.int16)).max() for array in past) > 100


def test_greedy_text_over_more_than_one_chunk(tiny: Path, tiny_fp32: Path) -> None:
    prompt = _TEXT[:2200]
    found = Gemma(tiny).generate(prompt, max_new_tokens=24)
    assert found.prompt_tokens > 512
    assert found.token_ids == Gemma(tiny_fp32).generate(prompt, max_new_tokens=24).token_ids
    ids = np.array([load_tokenizer(BUILTIN_DIRECTORY).encode(prompt)])
    assert list(found.token_ids) == reference_choices(builtin_reference(), ids, list(found.token_ids))


@pytest.mark.parametrize("role", ["all", "batched"])
def test_left_padded_batch(tiny: Path, role: str) -> None:
    """Each row as it is alone: a prompt padded on the left, then steps; with the batched twin in chunks."""
    graph, alone = (Graph(tiny / read_manifest(tiny).graph(name).file) for name in (role, "all"))
    lengths, width = (60, 41, 7), 60
    ids, mask = np.zeros((3, width), np.int64), np.zeros((3, width), np.int64)
    for row, length in enumerate(lengths):
        ids[row, -length:], mask[row, -length:] = _IDS[0, :length], 1
    past = None
    for columns in (slice(0, 35), slice(35, width)) if role == "batched" else (slice(0, width),):
        logits, past = graph.step(ids[:, columns], mask[:, : columns.stop], past)
    for step in range(6):
        for row, length in enumerate(lengths):
            expected, _ = alone.step(_IDS[:, : length + step], np.ones((1, length + step)))
            assert np.abs(logits[row, -1] - expected[0, -1]).max() <= tolerances.FP32_LOGITS * expected.std(), row
        mask = np.concatenate((mask, np.ones((3, 1), np.int64)), axis=1)
        tokens = np.array([[_IDS[0, length + step]] for length in lengths])
        logits, past = graph.step(tokens, mask, past)


def test_bytes_of_the_cache(exported: tuple[Path, tuple[str | None, str]]) -> None:
    """A quarter of float32, half of float16: what the diagnosis says, and what the loop allocates."""
    folder, _ = exported
    report = validated(gemma_run("--doctor", folder, "--json").stdout, "gemma_runtime/doctor")
    config = json.loads((folder / "config.json").read_text())
    numbers = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    assert report["folder"]["state_bytes_per_token"] == numbers
    state = Gemma(folder).sequence(100).state
    assert sum(buffer.memory.nbytes for buffer in state.buffers) == state.capacity * numbers


def test_command_line_and_json(tmp_path: Path) -> None:
    arguments = ("--variant", "tiny", "--fp16", "--kv-cache", "int8", "--json")
    plan = validated(gemma_export(*arguments, "--dry-run", cwd=tmp_path).stdout, "gemma_export/plan")
    written = validated(gemma_export(*arguments, cwd=tmp_path).stdout, "gemma_export/export")
    assert written["output"] == plan["output"] == "gemma-tiny-fp16-kvint8"
    assert written["kv_cache"] == plan["kv_cache"]
    assert plan["kv_cache"] == {
        "dtype": "int8",
        "granularity": "channel",
        "bytes_per_token": 1024,
        "full_context_bytes": 1024 * 8192,
        "windowed_full_context_bytes": None,
    }
    assert "calibrate" in written["seconds"]
    said = gemma_export(*arguments[:-1], "--dry-run", cwd=tmp_path).stdout
    assert "cache: 1,024 bytes of int8 keys and values a token" in said
    assert "keys and values in int8" in (tmp_path / "gemma-tiny-fp16-kvint8/README.md").read_text()
    assert_error(
        gemma_run("gemma-tiny-fp16-kvint8", "x", "--provider", "cuda", cwd=tmp_path), 8, "runs on cpu", "not on cuda"
    )


def test_the_same_bytes_again(tiny: Path, tmp_path: Path) -> None:
    again = _export(tmp_path / "again", variant="tiny")
    assert (again / "gemma_export.json").read_bytes() == (tiny / "gemma_export.json").read_bytes()


def test_a_manifest_that_says_otherwise_is_refused(tmp_path: Path) -> None:
    folder = _export(tmp_path / "out", variant="tiny")
    graphs = tuple(
        dataclasses.replace(graph, state=tuple(dataclasses.replace(state, dtype="float32") for state in graph.state))
        for graph in read_manifest(folder).graphs
    )
    rewrite_manifest(folder, graphs=graphs)
    with pytest.raises(FolderError, match=r"past_key_values.0.key: expected float32 .* found INT8"):
        verify_folder(folder)
    assert_error(gemma_run(folder, "x"), 3, "is not the graph that the manifest describes: past_key_values.0.key")


def test_scales_that_lie_in_the_data_file(tmp_path: Path) -> None:
    """Four heads of 64 channels are a kilobyte of scales: planned to the byte, as of every released size."""
    config = {**CONFIGS["gqa"], "num_key_value_heads": 4, "head_dim": 64}
    model = reference_model(config)
    write_checkpoint(model, tmp_path / "checkpoint", config, BUILTIN_DIRECTORY)
    plan = plan_export(ExportRequest(checkpoint=tmp_path / "checkpoint", kv_cache="int8", output=tmp_path / "folder"))
    plain = plan_export(ExportRequest(checkpoint=tmp_path / "checkpoint", output=tmp_path / "folder"))
    folder = _export(tmp_path / "folder", checkpoint=tmp_path / "checkpoint")
    assert (folder / "onnx/model.onnx_data").stat().st_size == plan.data.size
    assert plan.data.size == plain.data.size + 2 * 3 * 1024
    scales = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(folder / "onnx/model.onnx").graph.initializer
        if tensor.name.endswith("_scale")
    }
    assert len(scales) == 6
    ids = np.random.default_rng(1).integers(4, 3072, (1, 40))
    graph = Graph(folder / "onnx/model.onnx")
    _, present = graph.step(ids, np.ones_like(ids))
    with torch.no_grad():
        layer = model(input_ids=torch.from_numpy(ids), use_cache=True).past_key_values.layers[0]
    # the first layer depends on no other's rounding
    for name, codes, exact in zip(graph.past_names, present, (layer.keys, layer.values), strict=False):
        quotient = np.clip(exact.numpy() / scales[f"{name}_scale"], -128, 127)
        assert np.abs(codes - quotient).max() <= 0.5 + 1e-3
        assert np.abs(codes.astype(np.int16)).max() > 80
