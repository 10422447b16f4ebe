"""Drift of each precision of the built-in model, and of int8 caches, against PyTorch (transformers, float32) on
held-out Python text.

Prints the table of the README. The text should be none that the model was trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import torch
import transformers

from benchmarks.harness.machine import describe_machine, one_line
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, export
from gemma_export.precision import PRECISIONS
from gemma_runtime import read_manifest
from gemma_runtime.tokenizer import load_tokenizer
from gemma_validation import measure_drift, widen_bfloat16

__all__ = ["main", "reference_logits", "sequences"]

_LENGTH = 512


def main(arguments: list[str]) -> int:
    """Exports, compares and prints; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks precision", description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="Python files")
    parser.add_argument("--tokens", type=int, default=6144, help="positions to compare (default: 6144)")
    parser.add_argument("--length", type=int, default=_LENGTH, help=f"tokens of a sequence (default: {_LENGTH})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    options = parser.parse_args(arguments)
    ids = sequences(options.text, options.tokens, length=options.length)
    expected = reference_logits(BUILTIN_DIRECTORY, ids)
    machine = describe_machine(Path(tempfile.gettempdir()))
    print(f"{one_line(machine)}\n{ids.size} positions")
    columns = ("precision", "cache", "mean KL", "p99 KL", "top-1 agreement", "MB", "cache bytes a token")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    rows = []
    for precision, kv_cache in (*((name, None) for name in PRECISIONS), ("fp32", "int8"), ("fp16", "int8")):
        row = _measure(precision, kv_cache, ids, expected)
        rows.append({"precision": precision, "kv_cache": kv_cache, **row})
        print(
            f"| {precision} | {kv_cache or precision} | {row['mean_kl']:.2g} | {row['p99_kl']:.2g} "
            f"| {row['top1_agreement']:.2%} | {row['data_bytes'] / 1e6:.2f} | {row['cache_bytes']:,} |"
        )
    if options.json is not None:
        versions = {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__}
        content = {"machine": machine, "versions": versions, "positions": int(ids.size), "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def _measure(
    precision: str, kv_cache: str | None, ids: npt.NDArray[np.int64], expected: npt.NDArray[np.float32]
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as root:
        request = ExportRequest(variant="tiny", precision=precision, kv_cache=kv_cache, output=Path(root) / "folder")
        result = export(request)
        drift = measure_drift(expected, logits(result.folder.directory, ids))
        size = sum(entry.size for entry in result.folder.files if entry.kind == "data")
    return {
        "mean_kl": float(drift.mean_kl),
        "p99_kl": float(drift.p99_kl),
        "top1_agreement": float(drift.top1_agreement),
        "data_bytes": size,
        "cache_bytes": result.plan.precision.state_nbytes(result.plan.facts.states),
    }


def reference_logits(checkpoint: Path, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """float32 [n, length, vocab_size] by transformers."""
    model = transformers.GemmaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        return np.concatenate([model(input_ids=torch.from_numpy(row[None])).logits.numpy() for row in ids])


def sequences(
    files: list[Path], count: int, checkpoint: Path = BUILTIN_DIRECTORY, *, length: int = _LENGTH
) -> npt.NDArray[np.int64]:
    """int64 [n, length]: BOS and tokens of the texts by the checkpoint's tokenizer, one sequence after another."""
    tokenizer = load_tokenizer(checkpoint)
    tokens = [token for file in files for token in tokenizer.encode(file.read_text(encoding="utf-8"))[1:]]
    body = length - 1
    rows = min(len(tokens) // body, count // length)
    if rows == 0:
        raise SystemExit(f"the texts have {len(tokens)} tokens, at least {body} are needed")
    cut = np.array(tokens[: rows * body], dtype=np.int64).reshape(rows, body)
    return np.concatenate((np.full((rows, 1), tokenizer.bos_id, dtype=np.int64), cut), axis=1)


def logits(folder: Path, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """float32 [n, length, vocab_size] of the graph with all positions, on the CPU provider.

    That provider has no bfloat16 kernels: a bfloat16 graph runs with its rounded weights in float32.
    """
    manifest = read_manifest(folder)
    graph = manifest.graph("all")
    widened = manifest.precision.activation_dtype == "bfloat16"
    path = folder / graph.file
    source = ir.to_proto(widen_bfloat16(ir.load(path))).SerializeToString() if widened else str(path)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    dtype = np.dtype("float32" if widened else graph.state[0].dtype)
    rows = []
    for row in ids:
        # [batch_size, kv_heads, past_sequence_length, head_dim] of an empty cache
        shapes = [(1, int(layer.shape[1]), 0, int(layer.shape[3])) for layer in graph.state]
        empty = [np.zeros(shape, dtype) for shape in shapes]
        state = {name: array for layer, array in zip(graph.state, empty, strict=True) for name in layer.past}
        feeds = {"input_ids": row[None], "attention_mask": np.ones((1, len(row)), np.int64)}
        rows.append(session.run(["logits"], feeds | state)[0].astype(np.float32))
    return np.concatenate(rows)
