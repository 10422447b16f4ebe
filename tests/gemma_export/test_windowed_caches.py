"""Folders with window-sized caches against transformers, far past the window; what plans and manifests say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from decoders import Graph
from programs import gemma_export
from windowed_decoders import WINDOWED_CONFIGS, windowed_reference, write_windowed_checkpoint

from gemma_export.artifact import verify_folder
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, export
from gemma_export.planning import plan_export
from gemma_export.precision import WeightOptions
from gemma_runtime import read_manifest

# one more positions than the graph of the last eight gives is one too many
_CHUNK = 8


class Exported:
    """A reference, and the graphs that were made of it."""

    def __init__(self, root: Path, name: str) -> None:
        config = WINDOWED_CONFIGS[name]
        self.window = int(config["sliding_window"])
        model = windowed_reference(config)
        checkpoint = write_windowed_checkpoint(model, root / "checkpoint", config, BUILTIN_DIRECTORY)
        self.folder = export(ExportRequest(checkpoint=checkpoint, output=root / "folder")).folder.directory
        self.ids = np.random.default_rng(1).integers(108, 3072, (2, 27 * self.window))
        with torch.no_grad():
            self.expected = model(torch.from_numpy(self.ids)).logits.numpy()

    def graph(self, role: str, capacity: int) -> Graph:
        graph = Graph(self.folder / read_manifest(self.folder).graph(role).file)
        graph.window_capacity = capacity
        return graph

    def close(self, found: np.ndarray, expected: np.ndarray) -> None:
        assert np.isfinite(found).all()
        assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * self.expected.std()


@pytest.fixture(scope="module", params=["gemma2", "gemma3"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("windowed"), request.param)


@pytest.mark.parametrize("slack", [0, 5, 64])
@pytest.mark.parametrize("size", [1, 3, _CHUNK])
def test_27_windows_in_chunks(exported: Exported, slack: int, size: int) -> None:
    """Every position of the texts: token by token, and in chunks up to as long as the graph gives logits."""
    found = exported.graph("windowed_last8", exported.window + slack).chunks(exported.ids[:1], size)
    exported.close(found, exported.expected[:1])


@pytest.mark.parametrize("slack", [0, 5])
def test_a_prompt_of_many_windows_then_decode(exported: Exported, slack: int) -> None:
    graph, read = exported.graph("windowed", exported.window + slack), 20 * exported.window
    logits, past = graph.step(exported.ids[:, :read], np.ones((2, read)))
    exported.close(logits[:, -1], exported.expected[:, read - 1])
    for position in range(read, exported.ids.shape[1]):
        logits, past = graph.step(exported.ids[:, position : position + 1], np.ones((2, position + 1)), past)
        exported.close(logits[:, -1], exported.expected[:, position])
    lengths = {array.shape[2] for array in past}
    assert lengths == {exported.window + slack, exported.ids.shape[1]}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("slack", [0, 5])
def test_padded_batch_then_decode(exported: Exported, side: str, slack: int) -> None:
    """One row past its window, one within it; each pushes tokens out at steps of its own."""
    lengths, width = (5 * exported.window + 1, exported.window - 2), 6 * exported.window
    ids, mask = np.zeros((2, width), np.int64), np.zeros((2, width), np.int64)
    for row, length in enumerate(lengths):
        columns = slice(width - length, None) if side == "left" else slice(0, length)
        ids[row, columns], mask[row, columns] = exported.ids[row, :length], 1
    graph = exported.graph("windowed_last8", exported.window + slack)
    logits, past = graph.step(ids, mask)
    for step in range(2 * exported.window):
        ends = [length + step for length in lengths]
        exported.close(logits[:, -1], np.stack([exported.expected[row, end - 1] for row, end in enumerate(ends)]))
        token = np.array([[exported.ids[row, end]] for row, end in enumerate(ends)])
        mask = np.concatenate((mask, np.ones((2, 1), np.int64)), axis=1)
        logits, past = graph.step(token, mask, past)


def test_the_folder_is_whole(exported: Exported) -> None:
    report = verify_folder(exported.folder)
    manifest = report.manifest
    sizes = {entry.path: entry.size for entry in manifest.files}
    data = {file for graph in manifest.graphs for file in graph.data_files}
    assert data == {"onnx/model.onnx_data"}
    for role in ("windowed", "windowed_last8"):
        assert sizes[manifest.graph(role).file] < 150_000


@pytest.mark.parametrize(
    ("options", "windowed"),
    [
        ({}, True),
        ({"precision": "fp16"}, True),
        ({"weights": WeightOptions(scheme="int4")}, True),
        # nothing is saved where the context is no longer than the window
        ({"context": 4096}, False),
        ({"context": 4097}, True),
        ({"target": "portable"}, False),
    ],
    ids=str,
)
def test_which_folders_get_such_graphs(options: dict[str, Any], windowed: bool) -> None:
    plan = plan_export(ExportRequest(variant="gemma2-2b", synthetic_seed=0, output=Path("unused"), **options))
    roles = [graph.role for graph in plan.graphs if graph.windowed]
    assert roles == (["windowed", "windowed_last8"] if windowed else [])


def test_a_dry_run_says_what_is_saved() -> None:
    """13 of 26 layers keep 4,096 of 8,192 tokens: three quarters of all are left."""
    arguments = ("--variant", "gemma2-2b", "--synthetic-weights", "0", "--dry-run")
    cache = json.loads(gemma_export(*arguments, "--json").stdout)["kv_cache"]
    per_token = 26 * 2 * 4 * 256 * 4
    assert cache["bytes_per_token"] == per_token
    assert cache["full_context_bytes"] == 8192 * per_token
    assert cache["windowed_full_context_bytes"] == 8192 * per_token * 3 // 4
    said = gemma_export(*arguments).stdout
    assert "window-sized caches: 1.31 GB instead of 1.74 GB at the full context of 8,192 tokens" in said
    plain = gemma_export("--variant", "tiny", "--dry-run").stdout
    assert "window-sized" not in plain
