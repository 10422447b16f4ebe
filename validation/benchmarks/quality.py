"""What 4 and 8 bits lose on a trained checkpoint: ours, onnxruntime-genai's and llama.cpp's, one text, one run.

Every export runs the same held-out token ids in its own runtime; its logits are compared with those of transformers in
float32 over the whole vocabulary. The text should be none that the model was trained on.
"""

from __future__ import annotations

import argparse
import functools
import shutil
from pathlib import Path

import numpy as np

from benchmarks.harness import METRICS, Benchmark, Input, Metric, add_arguments, read_settings, run_benchmark
from benchmarks.precision_drift import reference_logits, sequences
from benchmarks.quality_programs import IDS, REFERENCE, quality_programs
from gemma_export.checkpoint import BUILTIN_DIRECTORY

__all__ = ["main"]

_PEERS = Path(__file__).resolve().parents[2] / ".peers"
_METRICS = {
    "mean_kl": Metric(label="mean KL", unit="nats", better="lower", description="KL(float32 || export), all positions"),
    "p99_kl": Metric(label="p99 KL", unit="nats", better="lower", description="99th percentile over positions"),
    "top1_percent": Metric(label="top-1", unit="%", better="higher", description="positions with the same argmax"),
    "weight_bytes": Metric(
        label="weights", unit="bytes", better="lower", description="stored matrices and norms, without rotary tables"
    ),
    **{name: METRICS[name] for name in ("seconds", "peak_bytes")},
}


def main(arguments: list[str]) -> int:
    """Runs the benchmark and returns its exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks quality", description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="Python files")
    parser.add_argument("--tokens", type=int, default=6144, help="positions to compare (default: 6144)")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", default=BUILTIN_DIRECTORY, help="default: the built-in tiny model"
    )
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", default=_PEERS, help="environments of `make peers` (default: .peers)"
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    name = "tiny" if options.checkpoint == BUILTIN_DIRECTORY else options.checkpoint.name
    ids = sequences(options.text, options.tokens, options.checkpoint)
    nbytes = sum(file.stat().st_size for file in options.checkpoint.iterdir() if file.is_file())
    benchmark = Benchmark(
        name=f"quality-{name}",
        title=f"Drift from PyTorch float32 over {ids.size} held-out positions ({name} checkpoint)",
        subject="int4 (default)",
        programs=quality_programs(options.peers.resolve()),
        input=Input(
            name=f"quality-{name}",
            nbytes=nbytes,
            make=functools.partial(_write_input, checkpoint=options.checkpoint, ids=ids),
        ),
        options={"checkpoint": name, "positions": int(ids.size), "texts": [file.name for file in options.text]},
        metrics=_METRICS,
    )
    return run_benchmark(benchmark, read_settings(options))


def _write_input(directory: Path, *, checkpoint: Path, ids: np.ndarray) -> None:
    shutil.copytree(checkpoint, directory / "checkpoint")
    np.save(directory / IDS, ids)
    np.save(directory / REFERENCE, reference_logits(checkpoint, ids))
