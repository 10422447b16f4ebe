"""Prefill and decode speed of a folder of ours, by the runtime's own loop; prints JSON.

decode_speed.py FOLDER PROMPT_TOKENS NEW_TOKENS: the prompt is of random token ids, each new token the greedy one.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from gemma_runtime import Gemma


def main() -> None:
    """One short run to warm up, then one that is timed."""
    folder, prompt_tokens, new_tokens = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    model = Gemma(folder)
    random = np.random.default_rng(0)
    for tokens in (4, new_tokens):
        prompt = random.integers(256, 3000, prompt_tokens).tolist()
        sequence = model.sequence(prompt_tokens + new_tokens)
        start = time.perf_counter()
        token = int(sequence.step(prompt)[-1].argmax())
        prefilled = time.perf_counter()
        for _ in range(tokens):
            token = int(sequence.step([token])[-1].argmax())
        end = time.perf_counter()
    figures = {"prefill": prompt_tokens / (prefilled - start), "decode": new_tokens / (end - prefilled)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
