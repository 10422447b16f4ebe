"""Drift of each precision of the built-in model against PyTorch (transformers, float32) on held-out Python text.

    python validation/benchmarks/precision_drift.py --text FILE... [--tokens 6144]

Prints the table of the README. The text should be none that the model was trained on.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
import torch
import transformers

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, export
from gemma_export.precision import PRECISIONS
from gemma_runtime import read_manifest
from gemma_runtime.tokenizer import load_tokenizer
from gemma_validation import measure_drift

_LENGTH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=6144)
    arguments = parser.parse_args()
    ids = sequences(arguments.text, arguments.tokens)
    model = transformers.GemmaForCausalLM.from_pretrained(BUILTIN_DIRECTORY, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = np.concatenate([model(input_ids=torch.from_numpy(row[None])).logits.numpy() for row in ids])
    print(f"{ids.size} positions\n| precision | mean KL | p99 KL | top-1 agreement | MB |\n|---|---|---|---|---|")
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory() as root:
            result = export(ExportRequest(variant="tiny", precision=precision, output=Path(root) / "folder"))
            drift = measure_drift(expected, logits(result.folder.directory, ids))
            size = sum(entry.size for entry in result.folder.files if entry.kind == "data") / 1e6
        print(f"| {precision} | {drift.mean_kl:.2g} | {drift.p99_kl:.2g} | {drift.top1_agreement:.2%} | {size:.2f} |")


def sequences(files: list[Path], count: int) -> np.ndarray:
    """int64 [n, 512]: BOS and 511 tokens of the texts, one after another."""
    tokenizer = load_tokenizer(BUILTIN_DIRECTORY)
    tokens = [token for file in files for token in tokenizer.encode(file.read_text(encoding="utf-8"))[1:]]
    body = _LENGTH - 1
    rows = min(len(tokens) // body, count // _LENGTH)
    if rows == 0:
        raise SystemExit(f"the texts have {len(tokens)} tokens, at least {body} are needed")
    cut = np.array(tokens[: rows * body], dtype=np.int64).reshape(rows, body)
    return np.concatenate((np.full((rows, 1), tokenizer.bos_id, dtype=np.int64), cut), axis=1)


def logits(folder: Path, ids: np.ndarray) -> np.ndarray:
    """float32 [n, 512, vocab_size] of the graph with all positions."""
    manifest = read_manifest(folder)
    graph = manifest.graph("all")
    session = onnxruntime.InferenceSession(folder / graph.file, providers=["CPUExecutionProvider"])
    dtype = np.dtype(manifest.precision.activation_dtype)
    rows = []
    for row in ids:
        empty = [np.zeros((1, layer.shape[1], 0, layer.shape[3]), dtype) for layer in graph.state]
        state = {name: array for layer, array in zip(graph.state, empty, strict=True) for name in layer.past}
        feeds = {"input_ids": row[None], "attention_mask": np.ones((1, len(row)), np.int64)}
        rows.append(session.run(["logits"], feeds | state)[0].astype(np.float32))
    return np.concatenate(rows)


if __name__ == "__main__":
    main()
