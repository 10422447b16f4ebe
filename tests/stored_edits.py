"""Copies of exported folders whose stored numbers were changed in place; their hashes are left as they were."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from gemma_runtime.manifest import read_manifest

__all__ = ["alter", "copy_of"]


def copy_of(folder: Path, tmp_path: Path) -> Path:
    """A whole folder."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def alter(folder: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    """Changes an initializer's elements, in the data file or, where it is small, in the main graph."""
    graph = folder / read_manifest(folder).graph("main").file
    model = onnx.load_model(graph, load_external_data=False)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if not entries:
        elements = np.frombuffer(tensor.raw_data, dtype).copy()
        change(elements)
        tensor.raw_data = elements.tobytes()
        onnx.save_model(model, graph)
        return
    count = int(entries["length"]) // dtype.itemsize
    stored = np.memmap(graph.parent / entries["location"], dtype, "r+", offset=int(entries["offset"]), shape=(count,))
    change(stored)
    stored.flush()
