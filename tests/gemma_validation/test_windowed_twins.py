"""Validation of folders with window-sized caches: good ones pass, and a graph that is not what it says is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from folders import rewrite_manifest
from graph_edits import attribute, edited, nodes_of
from reference_exports import opens, structure_of
from windowed_decoders import WINDOWED_CONFIGS, windowed_reference, write_windowed_checkpoint

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, export
from gemma_runtime.manifest import read_manifest
from gemma_validation.findings import Check
from gemma_validation.invariances import check_invariances

_ROLES = ("windowed", "windowed_last8")
# one layer with a window of 9, one without
_CONFIG = WINDOWED_CONFIGS["gemma2"] | {"num_hidden_layers": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("windowed")
    checkpoint = write_windowed_checkpoint(windowed_reference(_CONFIG), root / "model", _CONFIG, BUILTIN_DIRECTORY)
    return export(ExportRequest(checkpoint=checkpoint, output=root / "folder")).folder.directory


def _invariances(folder: Path) -> dict[str, Check]:
    found = check_invariances(folder, read_manifest(folder), (), opened=opens(folder), suite="quick")
    return {check.name: check for check in found}


def _structure(folder: Path) -> dict[str, Check]:
    return {check.name: check for check in structure_of(folder)}


def test_the_same_steps_in_window_sized_caches(folder: Path) -> None:
    """A prompt longer than the window, chunks and tokens behind it, and padded rows where the graph takes them."""
    checks = _invariances(folder)
    assert [checks[f"graph {role}"].outcome for role in _ROLES] == ["passed", "passed"]


def test_the_structure_of_a_good_folder(folder: Path) -> None:
    assert [check.message for check in _structure(folder).values() if check.outcome == "failed"] == []


def _one_less(model: onnx.ModelProto) -> None:
    attribute(nodes_of(model, "GroupQueryAttention")[0], "local_window_size", 8)


def _grows(model: onnx.ModelProto) -> None:
    attribute(nodes_of(model, "GroupQueryAttention")[0], "sliding_window_cache", 0)


@pytest.mark.parametrize(
    ("edit", "name", "message"),
    [
        (_one_less, "attention", "window is 8, expected 9"),
        (_grows, "caches", "its cache is not as long as its shape ['batch_size', 2, 'window_capacity', 32] says"),
    ],
)
def test_a_graph_that_is_not_what_it_says(
    edit: Callable[[onnx.ModelProto], None], name: str, message: str, folder: Path, tmp_path: Path
) -> None:
    broken = edited(folder, tmp_path / "folder", edit, _ROLES)
    check = _structure(broken)[name]
    assert check.outcome == "failed"
    assert message in check.message
    checks = _invariances(broken)
    assert [checks[f"graph {role}"].outcome for role in _ROLES] == ["failed", "failed"]


def test_a_manifest_that_tells_another_window(folder: Path, tmp_path: Path) -> None:
    """Whoever goes by it keeps less than the kernel reads, or takes back what is gone."""
    broken = edited(folder, tmp_path / "folder", lambda model: None)
    rewrite_manifest(
        broken,
        graphs=tuple(
            dataclasses.replace(
                graph, state=tuple(dataclasses.replace(state, window=state.window * 2) for state in graph.state)
            )
            for graph in read_manifest(broken).graphs
        ),
    )
    assert "the manifest's window is 18, expected 9" in _structure(broken)["caches"].message
