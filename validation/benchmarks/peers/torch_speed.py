"""Speed of PyTorch with transformers, uncompiled: torch_speed.py CHECKPOINT PROMPTS CONTEXTS NEW float32|bfloat16."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

# run as a file: the package's parent is not on the path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed_protocol import Generate, measure


def load(checkpoint: str, longest: int) -> Generate:
    """The checkpoint as it is, with the attention that transformers chooses and its growing cache."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, sys.argv[5])).eval()

    def generate(ids: list[int], new: int) -> tuple[float, float]:
        cache = DynamicCache(config=model.config)

        def step(tokens: list[int]) -> int:
            # logits of the last position alone, as every other program here
            logits = model(torch.tensor([tokens]), past_key_values=cache, logits_to_keep=1).logits
            return int(logits[0, -1].argmax())

        with torch.inference_mode():
            start = time.perf_counter()
            token = step(ids)
            prefilled = time.perf_counter()
            for _ in range(new):
                token = step([token])
        return prefilled - start, time.perf_counter() - prefilled

    return generate


if __name__ == "__main__":
    measure(load)
