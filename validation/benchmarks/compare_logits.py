"""Drift of one export from reference logits: the last step of each program of the quality benchmark.

compare_logits.py SUBJECT INPUT: SUBJECT is a folder of ours, another exporter's .onnx, or the .npy of logits with a
.json beside it that says `weight_bytes`; INPUT holds the checkpoint, ids.npy and reference.npy. Prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from gemma_runtime import read_manifest
from gemma_validation import measure_drift

__all__ = ["main"]

_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


def main() -> None:
    """Runs what is not run yet, compares, prints."""
    subject, directory = Path(sys.argv[1]), Path(sys.argv[2])
    ids, reference = np.load(directory / "ids.npy"), np.load(directory / "reference.npy")
    if subject.suffix == ".npy":
        found = np.load(subject)
        nbytes = json.loads(subject.with_suffix(".json").read_text())["weight_bytes"]
    else:
        graph = subject if subject.suffix == ".onnx" else subject / read_manifest(subject).graph("all").file
        head_dim = json.loads((directory / "checkpoint/config.json").read_text())["head_dim"]
        found, nbytes = _logits(graph, ids, head_dim), _weight_bytes(graph)
    drift = measure_drift(reference, found)
    print(
        json.dumps(
            {
                "mean_kl": float(drift.mean_kl),
                "p99_kl": float(drift.p99_kl),
                "top1_percent": 100 * float(drift.top1_agreement),
                "weight_bytes": nbytes,
            }
        )
    )


def _logits(graph: Path, ids: npt.NDArray[np.int64], head_dim: int) -> npt.NDArray[np.float32]:
    """float32 [n, length, vocab_size] on the CPU provider, every row with an empty cache."""
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    length = ids.shape[1]
    rows = []
    for row in ids:
        feeds = {
            "input_ids": row[None],
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length, dtype=np.int64)[None],
        }
        inputs = {value.name: value for value in session.get_inputs()}
        for name, value in inputs.items():
            if name not in feeds:
                # decoder state, [batch_size, kv_heads, past_sequence_length, head_dim]
                feeds[name] = np.zeros((1, value.shape[1], 0, head_dim), _NUMPY[value.type])
        rows.append(session.run(["logits"], {name: feeds[name] for name in inputs})[0].astype(np.float32))
    return np.concatenate(rows)


def _weight_bytes(graph: Path) -> int:
    """Bytes of the stored tensors, each once, without the rotary tables, which are no weights."""
    ranges = {}
    for name, value in ir.load(graph).graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and "cos_cache" not in name and "sin_cache" not in name:
            ranges[tensor.location, tensor.offset] = tensor.length or tensor.nbytes
    return sum(ranges.values())


if __name__ == "__main__":
    main()
