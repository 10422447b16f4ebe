"""What can be seen of a folder: its logits in the ways in which a defect shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from gemma_runtime import read_manifest
from gemma_runtime.manifest import Graph
from gemma_runtime.opening import open_session, session_options
from gemma_runtime.tokenizer import load_tokenizer

TEXT = '''"""Reads measurements and says which of them are far from the others."""

import csv
import statistics


def read_column(path, name):
    """All numbers of one column, in the order of the file."""
    with open(path, newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def outliers(values, limit=3.0):
    mean, deviation = statistics.mean(values), statistics.pstdev(values)
    return [value for value in values if abs(value - mean) > limit * deviation]
'''


def token_ids(folder: Path, text: str = TEXT) -> list[int]:
    """BOS and the text."""
    return load_tokenizer(folder).encode(text)


class Stepper:
    """A folder's graph, run as an exported graph is run: one step after the other."""

    def __init__(self, folder: Path, role: str, file: Path | None = None) -> None:
        self.graph: Graph = read_manifest(folder).graph(role)
        options = session_options(onnxruntime, 1, None)
        self.session = open_session(onnxruntime, file or folder / self.graph.file, "cpu", options)

    def step(self, ids: np.ndarray, mask: np.ndarray, past: list[np.ndarray] | None = None) -> list[np.ndarray]:
        """Logits [B, n, V] in float32, then the present state.

        Args:
            ids: [B, S].
            mask: [B, T], 1 for real tokens.
            past: of the step before.
        """
        presents = [name for state in self.graph.state for name in state.present]
        logits, *present = self.run(["logits", *presents], ids, mask, past)
        return [logits.astype(np.float32), *present]

    def run(
        self, names: list[str], ids: np.ndarray, mask: np.ndarray, past: list[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """Values of the graph by name."""
        if past is None:
            past = []
            for state in self.graph.state:
                shape = [dim if isinstance(dim, int) else len(ids) for dim in state.shape]
                # a window-sized cache with room for a window that is too large by one
                shape[2] = state.window + 8 if state.windowed else 0
                past += [np.zeros(shape, state.dtype)] * len(state.past)
        pasts = [name for state in self.graph.state for name in state.past]
        feeds = {"input_ids": ids, "attention_mask": mask, **dict(zip(pasts, past, strict=True))}
        return self.session.run(names, feeds)


def observe(folder: Path, shows: str, ids: list[int]) -> np.ndarray:
    """Logits [positions, vocab_size] of the way in which a defect shows (`Defect.shows`).

    text, bytes, tokens: one document at once, on the graph with all positions. main: the main graph's. padding: both
    sides of it, real tokens only. decode: token by token behind a prompt.
    """
    row = np.array([ids], np.int64)
    stepper = Stepper(folder, "main" if shows == "main" else "all")
    if shows == "padding":
        half = row[:, : row.shape[1] // 2]
        short = half.shape[1]
        gap = np.zeros((1, row.shape[1] - short), np.int64)
        batch = np.concatenate([np.hstack([gap, half]), np.hstack([half, gap])])
        mask = np.ones_like(batch)
        mask[0, : gap.shape[1]] = 0
        mask[1, short:] = 0
        return stepper.step(batch, mask)[0][mask == 1]
    if shows == "decode":
        first = row.shape[1] // 2
        logits, *past = stepper.step(row[:, :first], np.ones((1, first), np.int64))
        found = [logits[0]]
        for end in range(first + 1, row.shape[1] + 1):
            logits, *past = stepper.step(row[:, end - 1 : end], np.ones((1, end), np.int64), past)
            found.append(logits[0])
        return np.concatenate(found)
    return stepper.step(row, np.ones_like(row))[0][0]


def residual_stream(folder: Path, ids: list[int]) -> dict[str, np.ndarray]:
    """Every point of the residual stream of one document, in graph order: name -> [1, S, hidden_size]."""
    manifest = read_manifest(folder)
    graph = manifest.graph("all")
    model = onnx.load_model(folder / graph.file, load_external_data=False)
    points = ["model.embed_tokens.ScaledEmbedding"]
    for layer in range(len(graph.state)):
        points += [f"layers.{layer}.attn_residual", f"layers.{layer}.mlp_residual"]
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(manifest.precision.activation_dtype))
    model.graph.output.extend(helper.make_tensor_value_info(point, dtype, None) for point in points)
    tapped = folder / "onnx" / "tapped.onnx"
    tapped.write_bytes(model.SerializeToString())
    try:
        stepper = Stepper(folder, "all", tapped)
        row = np.array([ids], np.int64)
        return dict(zip(points, stepper.run(points, row, np.ones_like(row)), strict=True))
    finally:
        tapped.unlink()
