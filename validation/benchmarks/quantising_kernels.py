"""How many weights a second are quantised, from the checkpoint's bfloat16 to packed codes: one thread, and all of them.

The compiled pass alone, called again over rows of its own by each thread; and the whole way of the exporter, which
reads a stored tensor piece by piece, hands the pieces to its threads and takes the codes in order. All take turns.
"""

from __future__ import annotations

import argparse
import itertools
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from benchmarks.harness.machine import describe_machine, one_line
from gemma_export.precision.block_codes import compiled_pass
from gemma_export.precision.block_format import BLOCK_SIZES, BlockFormat
from gemma_export.precision.quantisers import QUANTISERS
from gemma_export.precision.quantisers.search import FACTORS
from gemma_export.precision.row_pieces import converted_stored_rows
from gemma_export.tensors import StoredTensor
from gemma_export.weights import Stored, one_thread

__all__ = ["main"]

_COLUMNS, _PASS_ROWS = 2048, 512
_SEED = 0


class _Source:
    """A tensor in memory, as a checkpoint's file would have it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._bytes = tensor.contiguous().view(torch.uint8).numpy().reshape(-1).data
        self.tensors: Mapping[str, StoredTensor] = {"rows": StoredTensor("bfloat16", tuple(tensor.shape))}

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """See TensorSource."""
        buffer[:] = self._bytes[offset : offset + len(buffer)]


def main(arguments: list[str]) -> int:
    """Runs the benchmark and returns its exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks kernels", description=__doc__)
    parser.add_argument("--rows", type=int, default=16384, metavar="N", help=f"of {_COLUMNS} weights (default: 16384)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="the best counts (default: 5)")
    options = parser.parse_args(arguments)
    if options.rows < 1 or options.rounds < 1:
        parser.error("--rows and --rounds must be at least 1")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.manual_seed(_SEED)
    rows = (torch.randn(options.rows, _COLUMNS) * 0.02).bfloat16()
    print(f"{one_line(describe_machine(Path.cwd()))}\n")
    print(f"| G weights/s | pass, one thread | pass, {threads} threads | reading and handing over too |")
    print("|---|---|---|---|")
    for bits, block_size, symmetric, name in itertools.product((4, 8), BLOCK_SIZES, (False, True), ("search", "rtn")):
        layout = BlockFormat(bits=bits, block_size=block_size, symmetric=symmetric)
        told = f"{name}, {bits} bits, block {block_size}{', symmetric' if symmetric else ''}"
        found = _rates(name, layout, rows, threads, options.rounds)
        print(f"| {told} | {' | '.join(f'{rate:.2f}' for rate in found)} |", flush=True)
    return 0


def _rates(name: str, layout: BlockFormat, rows: torch.Tensor, threads: int, rounds: int) -> list[float]:
    """The best rates, G weights/s: of the pass on one thread and on all, and of the exporter's whole way."""
    factors = FACTORS[layout.symmetric] if name == "search" else None
    part = rows[:_PASS_ROWS]
    passes = [compiled_pass(part.clone(), layout, torch.float32, factors)[0] for _ in range(threads)]
    times = -(-len(rows) // _PASS_ROWS)
    stored, quantise = Stored(_Source(rows), "rows"), QUANTISERS[name].prepare("rows", layout, torch.float32)

    def whole() -> None:
        with one_thread():
            for _ in converted_stored_rows((stored,), quantise):
                pass

    ways: list[tuple[Callable[[], None], int]] = [
        (lambda: _repeated(passes[:1], times), part.numel() * times),
        (lambda: _repeated(passes, times), part.numel() * times * threads),
        (whole, rows.numel()),
    ]
    # compiles
    passes[0]()
    best = [0.0] * len(ways)
    for _ in range(rounds):
        for index, (run, count) in enumerate(ways):
            start = time.perf_counter()
            run()
            best[index] = max(best[index], count / (time.perf_counter() - start) / 1e9)
    return best


def _repeated(passes: list[Callable[[], None]], times: int) -> None:
    """Runs each pass so many times, on a thread of its own."""

    def repeat(run: Callable[[], None]) -> None:
        for _ in range(times):
            run()

    workers = [threading.Thread(target=repeat, args=(run,)) for run in passes]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
