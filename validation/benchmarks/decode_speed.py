"""Speed of a folder of ours, by the runtime's own loop: decode_speed.py FOLDER PROMPTS CONTEXTS NEW."""

from __future__ import annotations

import sys
import time
from pathlib import Path

# run as a file: the package's parent is not on the path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed_protocol import Generate, measure


def load(folder: str, longest: int) -> Generate:
    """The folder on the CPU provider."""
    from gemma_runtime.bench.engine import Engine

    engine = Engine(Path(folder), provider="cpu", threads=None)

    def generate(ids: list[int], new: int) -> tuple[float, float]:
        start = time.perf_counter()
        token = engine.start(ids, len(ids) + new)
        prefilled = time.perf_counter()
        for _ in range(new):
            token = engine.step(token)
        return prefilled - start, time.perf_counter() - prefilled

    return generate


if __name__ == "__main__":
    measure(load)
