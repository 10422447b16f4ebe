"""Export time, peak memory and size on disk beside three peers, from one bfloat16 checkpoint, in one run.

make bench-export does it for the 2B's shape: 20 GB of disk, 24 GiB of memory, about 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from benchmarks.exporters import PRECISIONS, SUBJECT, exporters
from benchmarks.harness import Benchmark, Input, add_arguments, read_settings, run_benchmark
from benchmarks.synthetic_checkpoint import SHAPES, checkpoint_bytes, write_checkpoint

__all__ = ["main"]

_PEERS = Path(__file__).resolve().parents[2] / ".peers"


def main(arguments: list[str]) -> int:
    """Runs the benchmark and returns its exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks export", description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="2b", help="of the checkpoint (default: 2b)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help="of the exports (default: fp16)")
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", default=_PEERS, help="environments of `make peers` (default: .peers)"
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    settings = read_settings(options)
    shape = SHAPES[options.shape]
    nbytes = checkpoint_bytes(shape)
    parameters = nbytes // 2
    size = f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"
    benchmark = Benchmark(
        name=f"export-{options.precision}-{options.shape}",
        title=f"Export of a bfloat16 Gemma checkpoint ({options.shape} shape, {size} numbers) to {options.precision}",
        subject=SUBJECT,
        programs=exporters(options.precision, options.peers.resolve()),
        input=Input(
            name=f"checkpoint-{options.shape}",
            nbytes=nbytes,
            make=functools.partial(write_checkpoint, shape=shape),
        ),
        options={"shape": options.shape, "precision": options.precision, "input_bytes": nbytes},
    )
    return run_benchmark(benchmark, settings)
