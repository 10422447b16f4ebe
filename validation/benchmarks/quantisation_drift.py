"""Drift of every quantisation of the built-in model against PyTorch float32 on held-out Python text; writes nothing.

One line for each quantiser, block size, symmetry and bits of the embedding table, then the 8-bit schemes and both
accuracy levels of MatMulNBits. The text should be none that the model was trained on.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from benchmarks.precision_drift import reference_logits, sequences
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, build_semantic_graph, lower_graphs
from gemma_export.planning import ExportPlan, plan_export
from gemma_export.precision import QUANTISERS, WeightOptions
from gemma_export.precision.block_format import BLOCK_SIZES
from gemma_export.settling import settle_channel_scales
from gemma_validation import measure_drift

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Quantises, compares and prints; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks quantisation", description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="Python files")
    parser.add_argument("--tokens", type=int, default=6144, help="positions to compare (default: 6144)")
    options = parser.parse_args(arguments)
    ids = sequences(options.text, options.tokens)
    expected = reference_logits(BUILTIN_DIRECTORY, ids)
    traced = build_semantic_graph(plan_export(ExportRequest(variant="tiny")))
    print(f"{ids.size} positions; bytes of all matrices, without norms and rotary tables")
    print("| weights | mean KL | p99 KL | top-1 agreement | MB |\n|---|---|---|---|---|")
    for name, weights, accuracy_level in settings():
        plan = plan_export(ExportRequest(variant="tiny", weights=weights))
        drift = measure_drift(expected, logits(plan, traced.clone(), ids, accuracy_level))
        size = matrix_bytes(plan) / 1e6
        print(
            f"| {name} | {drift.mean_kl:.4g} | {drift.p99_kl:.3g} | {drift.top1_agreement:.2%} | {size:.3f} |",
            flush=True,
        )
    return 0


def settings() -> Iterator[tuple[str, WeightOptions, int | None]]:
    """Name, options, and accuracy level where it is not the target's own."""
    for level in (0, 4):
        for scheme in ("int4", "int8"):
            yield f"{scheme}, accuracy level {level}", WeightOptions(scheme=scheme), level
    for symmetric in (True, False):
        words = f"int8, {'symmetric' if symmetric else 'zero points'}"
        yield words, WeightOptions(scheme="int8", symmetric=symmetric), None
    for smoothing in (True, False):
        words = f"int8-dynamic, smoothing {'on' if smoothing else 'off'}"
        yield words, WeightOptions(scheme="int8-dynamic", smoothing=smoothing), None
    for bits, quantiser, symmetric, block in itertools.product((4, 8), QUANTISERS, (True, False), BLOCK_SIZES):
        words = f"int4 {quantiser}, block {block}, {'symmetric' if symmetric else 'zero points'}, table {bits} bits"
        options = WeightOptions(
            scheme="int4", block_size=block, symmetric=symmetric, quantiser=quantiser, embedding_bits=bits
        )
        yield words, options, None


def logits(
    plan: ExportPlan, model: ir.Model, ids: npt.NDArray[np.int64], accuracy_level: int | None
) -> npt.NDArray[np.float32]:
    """float32 [n, length, vocab_size] of the graph with all positions, run from memory."""
    settle_channel_scales(plan, model)
    graph = next(graph.model for graph in lower_graphs(plan, model) if graph.role == "all")
    for node in graph.graph:
        if node.op_type == "MatMulNBits" and accuracy_level is not None:
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", accuracy_level)
    for value in graph.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy())
    content = ir.serde.serialize_model(graph).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    heads, head_dim = plan.spec.num_key_value_heads, plan.spec.head_dim
    empty = np.zeros((1, heads, 0, head_dim), np.float32)
    state = {value.name: empty for value in session.get_inputs()[2:]}
    feeds = [{"input_ids": row[None], "attention_mask": np.ones((1, len(row)), np.int64)} for row in ids]
    return np.concatenate([session.run(["logits"], feed | state)[0] for feed in feeds])


def matrix_bytes(plan: ExportPlan) -> int:
    """Stored bytes of everything that the scheme quantises."""
    scheme = plan.precision.scheme
    assert scheme is not None
    stored = plan.target.stored_tensors(plan.tensors, plan.spec)
    return sum(
        nbytes
        for name, shape in stored
        if scheme.covers(name, shape)
        for _, nbytes in plan.precision.stored(name, shape)
    )
