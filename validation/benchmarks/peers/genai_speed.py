"""Prefill and decode speed of onnxruntime-genai; runs in the peer's environment; prints JSON.

genai_speed.py FOLDER PROMPT_TOKENS NEW_TOKENS: the prompt is of random token ids, each new token the greedy one.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnxruntime_genai as og


def main() -> None:
    """One short run to warm up, then one that is timed."""
    folder, prompt_tokens, new_tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    model = og.Model(folder)
    random = np.random.default_rng(0)
    for tokens in (4, new_tokens):
        prompt = random.integers(256, 3000, prompt_tokens).astype(np.int32)
        parameters = og.GeneratorParams(model)
        # no end before the last token
        length = prompt_tokens + tokens + 1
        parameters.set_search_options(do_sample=False, min_length=length, max_length=length)
        generator = og.Generator(model, parameters)
        start = time.perf_counter()
        generator.append_tokens(prompt[None])
        generator.generate_next_token()
        prefilled = time.perf_counter()
        for _ in range(tokens):
            generator.generate_next_token()
        end = time.perf_counter()
    print(json.dumps({"prefill": prompt_tokens / (prefilled - start), "decode": new_tokens / (end - prefilled)}))


if __name__ == "__main__":
    main()
