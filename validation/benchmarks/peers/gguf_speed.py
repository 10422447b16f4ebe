"""Prefill and decode speed of llama.cpp; runs in the peer's environment; prints JSON.

gguf_speed.py MODEL.gguf PROMPT_TOKENS NEW_TOKENS: the prompt is of random token ids, each new token the greedy one.
"""

from __future__ import annotations

import json
import os
import sys
import time

import llama_cpp
import numpy as np


def main() -> None:
    """One short run to warm up, then one that is timed."""
    model_file, prompt_tokens, new_tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    threads = len(os.sched_getaffinity(0))
    length = prompt_tokens + new_tokens
    model = llama_cpp.Llama(
        model_path=model_file,
        n_ctx=length,
        n_batch=prompt_tokens,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    vocabulary = model.n_vocab()
    random = np.random.default_rng(0)
    for tokens in (4, new_tokens):
        prompt = random.integers(256, 3000, prompt_tokens).tolist()
        model.reset()
        start = time.perf_counter()
        model.eval(prompt)
        token = _greedy(model, vocabulary)
        prefilled = time.perf_counter()
        for _ in range(tokens):
            model.eval([token])
            token = _greedy(model, vocabulary)
        end = time.perf_counter()
    print(json.dumps({"prefill": prompt_tokens / (prefilled - start), "decode": new_tokens / (end - prefilled)}))


def _greedy(model: llama_cpp.Llama, vocabulary: int) -> int:
    """Of the last position; the binding's own copies of all logits stay out of the figure."""
    logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
    return int(np.ctypeslib.as_array(logits, shape=(vocabulary,)).argmax())


if __name__ == "__main__":
    main()
