"""The bare matrix products of a folder, run for real."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks import roofline
from benchmarks.roofline import bare_matmuls
from gemma_export.errors import UsageError
from gemma_runtime.doctor import machine


def write_model(path: Path, inputs: list[str]) -> Path:
    """y = a @ w, with or without w among the weights."""
    node = onnx.helper.make_node("MatMul", inputs, ["y"], name="product")
    weights = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    values = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("a", "y")]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weights])
    imports = [onnx.helper.make_opsetid("", 21)]
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())
    return path


def test_the_folder_is_measured(tiny_fp32: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tiny_fp32), "--context", "8", "--steps", "2", "--rounds", "2"]
    assert roofline.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # four layers of five products each, and the head; all 3.67 million weights but the norms'
    assert found["products"] == 21
    assert 14.5e6 < found["weight_bytes"] < 14.7e6
    assert found["share"] > 0
    assert found["bare_bytes_per_second"] == pytest.approx(found["weight_bytes"] / found["bare_seconds"])
    assert roofline.main(arguments) == 0
    assert "of the bare kernels' bandwidth" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--threads", "2"]])
def test_the_bare_kernels_have_as_many_threads_as_the_engine(
    arguments: list[str], tiny_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container that may use one core of four, where onnxruntime would start a thread for each."""
    limited = dataclasses.replace(machine.count_cores(), usable=1, logical=4)
    monkeypatch.setattr(machine, "count_cores", lambda: limited)
    counts: list[int] = []
    session = onnxruntime.InferenceSession

    def counted(model: Any, options: Any, **others: Any) -> Any:
        counts.append(options.intra_op_num_threads)
        return session(model, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    assert roofline.main([str(tiny_fp32), "--context", "8", "--steps", "1", "--rounds", "1", *arguments]) == 0
    assert counts == ([2, 2] if arguments else [1, 1])


def test_every_product_is_that_of_its_own_weights(tmp_path: Path) -> None:
    model, names = bare_matmuls(write_model(tmp_path / "model.onnx", ["a", "w"]))
    assert names == ["product"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["float3"]
    (product,) = session.run(None, {"float3": np.array([[[1, 10, 100]]], np.float32)})
    assert product.tolist() == [[[420, 531]]]


@pytest.mark.parametrize(
    ("inputs", "phrase"), [(["a", "a"], "no matrix products with weights"), (["w", "w"], "other inputs")]
)
def test_graphs_without_such_products(tmp_path: Path, inputs: list[str], phrase: str) -> None:
    with pytest.raises(UsageError, match=phrase):
        bare_matmuls(write_model(tmp_path / "model.onnx", inputs))
