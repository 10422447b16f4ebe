"""Names of the folder's files."""

from __future__ import annotations

import pytest

from gemma_export.artifact.layout import MANIFEST_FILE, check_relative, data_file, file_kind, graph_file
from gemma_export.errors import InternalError
from gemma_runtime import manifest


def test_the_runtime_looks_for_the_same_manifest() -> None:
    assert MANIFEST_FILE == manifest.MANIFEST_FILE == "gemma_export.json"


@pytest.mark.parametrize(
    ("suffix", "role", "graph", "data"),
    [
        ("", "main", "onnx/model.onnx", "onnx/model.onnx_data"),
        ("_fp16", "main", "onnx/model_fp16.onnx", "onnx/model_fp16.onnx_data"),
        ("_q4f16", "windowed_all", "onnx/model_q4f16_windowed_all.onnx", "onnx/model_q4f16.onnx_data"),
    ],
)
def test_graphs_and_their_data(suffix: str, role: str, graph: str, data: str) -> None:
    assert graph_file(suffix, role) == graph
    # twins share the data file of the precision
    assert data_file(suffix) == data


@pytest.mark.parametrize(
    ("suffix", "role"), [("fp16", "main"), ("_FP16", "main"), ("_a/b", "main"), ("", ""), ("", "../x"), ("", "All")]
)
def test_names_outside_the_rule_are_refused(suffix: str, role: str) -> None:
    with pytest.raises(InternalError, match="do not fit") as raised:
        graph_file(suffix, role)
    assert raised.value.exit_code == 1


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("onnx/model.onnx", "graph"),
        ("onnx/model.onnx_data", "data"),
        ("onnx/model_q4.onnx_data_1", "data"),
        ("tokenizer.model", "tokenizer"),
        ("tokenizer_config.json", "tokenizer"),
        ("config.json", "config"),
        ("README.md", "document"),
        ("mixed_precision.json", "document"),
        ("mixed_precision.png", "document"),
    ],
)
def test_kinds(path: str, kind: str) -> None:
    assert file_kind(path) == kind


@pytest.mark.parametrize("path", ["config.json", "onnx/model.onnx", "a/b/c..d", "..a"])
def test_paths_inside_the_folder(path: str) -> None:
    assert check_relative(path) == path


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../a", "a/../b", "a/./b", "a//b", "a/", ".", "..", "a\\b", "C:a", "c:/a", "a\0b"]
)
def test_paths_that_could_leave_the_folder(path: str) -> None:
    with pytest.raises(InternalError, match="not a path inside the output folder"):
        check_relative(path)
