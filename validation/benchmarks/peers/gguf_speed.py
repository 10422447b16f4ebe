"""Speed of llama.cpp; runs in the peer's environment: gguf_speed.py MODEL.gguf PROMPTS CONTEXTS NEW."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

# run as a file: the package's parent is not on the path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed_protocol import Generate, measure

# tokens that go through at once: its own default of n_ubatch, and what ours does
_BATCH = 512


def load(model_file: str, longest: int) -> Generate:
    """One context for all sequences, emptied in between."""
    import llama_cpp

    threads = len(os.sched_getaffinity(0))
    model = llama_cpp.Llama(
        model_path=model_file,
        n_ctx=longest,
        n_batch=_BATCH,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    vocabulary = model.n_vocab()

    def greedy() -> int:
        # of the last position; the binding's own copies of all logits stay out of the figure
        logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, shape=(vocabulary,)).argmax())

    def generate(ids: list[int], new: int) -> tuple[float, float]:
        model.reset()
        start = time.perf_counter()
        model.eval(ids)
        token = greedy()
        prefilled = time.perf_counter()
        for _ in range(new):
            model.eval([token])
            token = greedy()
        return prefilled - start, time.perf_counter() - prefilled

    return generate


if __name__ == "__main__":
    measure(load)
