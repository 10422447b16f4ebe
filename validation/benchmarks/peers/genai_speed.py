"""Speed of onnxruntime-genai; runs in the peer's environment: genai_speed.py FOLDER PROMPTS CONTEXTS NEW."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

# run as a file: the package's parent is not on the path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed_protocol import Generate, measure


def load(folder: str, longest: int) -> Generate:
    """Its own export, on its own default provider."""
    import onnxruntime_genai as og

    model = og.Model(folder)

    def generate(ids: list[int], new: int) -> tuple[float, float]:
        parameters = og.GeneratorParams(model)
        # no end before the last token
        length = len(ids) + new + 1
        parameters.set_search_options(do_sample=False, min_length=length, max_length=length)
        generator = og.Generator(model, parameters)
        start = time.perf_counter()
        generator.append_tokens(np.array([ids], np.int32))
        generator.generate_next_token()
        prefilled = time.perf_counter()
        for _ in range(new):
            generator.generate_next_token()
        return prefilled - start, time.perf_counter() - prefilled

    return generate


if __name__ == "__main__":
    measure(load)
