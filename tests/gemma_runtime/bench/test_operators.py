"""Profiles written by hand, and the size of weights against the onnx package's own reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from gemma_runtime.bench.operators import read_profile
from gemma_runtime.bench.weight_bytes import weight_bytes

# microseconds; a long step first, that must not count
STARTS, STEPS = (0, 1000, 1100, 1200), (900, 80, 90, 120)


def event(name: str, kind: str, start: int, duration: int) -> dict[str, Any]:
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "args": {"op_name": kind},
        "ts": start,
        "dur": duration,
    }


def write_profile(path: Path) -> Path:
    events: list[dict[str, Any]] = [{"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 5, "args": {}}]
    for index, start in enumerate(STARTS):
        events.append(event("first", "MatMulNBits", start + 1, (700, 20, 20, 80)[index]))
        events.append(event("second", "MatMulNBits", start + 30, (100, 20, 25, 20)[index]))
        events.append(event("table", "Gather", start + 60, 9))
        # the session's event comes when the run has ended
        events.append({"cat": "Session", "name": "model_run", "ts": start, "dur": STEPS[index], "args": {}})
    path.write_text(json.dumps(events), encoding="utf-8")
    return path


def test_medians_of_the_last_steps(tmp_path: Path) -> None:
    weights = {"first": 1000, "second": 350, "table": 10**9}
    profile = read_profile(write_profile(tmp_path / "profile.json"), steps=3, context=7, weights=weights)
    matmul, gather = profile.operators
    assert (matmul.operator, matmul.calls, matmul.seconds) == ("MatMulNBits", 2, pytest.approx(45e-6))
    assert matmul.share == pytest.approx(0.5)
    assert matmul.weight_bytes == 1350
    assert matmul.weight_bytes_per_second == pytest.approx(1350 / 45e-6)
    # a table of which one row is read says nothing about bandwidth
    assert (gather.operator, gather.weight_bytes, gather.weight_bytes_per_second) == ("Gather", None, None)
    assert profile.step_seconds == pytest.approx(90e-6)
    # 31 of 80, 36 of 90 and 11 of 120 microseconds
    assert (profile.matmul_share, profile.outside_share) == (pytest.approx(0.5), pytest.approx(31 / 80))
    assert (profile.context, profile.steps, profile.matmul_weight_bytes) == (7, 3, 1350)


def test_without_known_weights_there_is_no_bandwidth(tmp_path: Path) -> None:
    profile = read_profile(write_profile(tmp_path / "profile.json"), steps=3, context=7, weights={})
    assert profile.matmul_weight_bytes_per_second is None
    assert profile.operators[0].weight_bytes is None


def test_fewer_runs_than_steps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 profiled steps expected, found 4"):
        read_profile(write_profile(tmp_path / "profile.json"), steps=5, context=7, weights={})


def test_weights_of_every_node(tiny_fp32: Path) -> None:
    path = tiny_fp32 / "onnx/model.onnx"
    graph = onnx.load(path, load_external_data=False).graph
    sizes = {
        value.name: int(np.prod(value.dims)) * onnx.helper.tensor_dtype_to_np_dtype(value.data_type).itemsize
        for value in graph.initializer
    }
    expected = {node.name: sum(sizes.get(name, 0) for name in node.input) for node in graph.node}
    assert weight_bytes(path) == {name: size for name, size in expected.items() if size}


def test_four_bit_and_packed_dimensions(tmp_path: Path) -> None:
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.UINT4, dims=[300, 5])
    graph = onnx.helper.make_graph([node], "g", [], [], [weights])
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert weight_bytes(path) == {"product": 750}


@pytest.mark.parametrize("content", [b"\x3a\x7fshort", b"\xff" * 30, b"\x3f\x00"])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.onnx is no ONNX model"):
        weight_bytes(path)
