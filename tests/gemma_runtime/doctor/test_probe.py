"""The minuscule graph, against the library that it was made with."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from gemma_runtime.doctor.probe import GRAPH, look_at_import, start_provider


def test_the_bytes_are_what_the_comment_says() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "g", [x], [y])
    expected = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert onnx.load_from_string(GRAPH) == expected
    onnx.checker.check_model(GRAPH, full_check=True)


def test_it_runs_and_gives_the_right_numbers() -> None:
    assert look_at_import()["complete"] is True
    found = start_provider("CPUExecutionProvider")
    assert (found["node_provider"], found["right"]) == ("CPUExecutionProvider", True)
