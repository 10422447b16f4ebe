"""Speed of onnxruntime-genai; runs in the peer's environment: genai_speed.py FOLDER PROMPTS CONTEXTS NEW."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# run as a file: the package's parent is not on the path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed_protocol import Generate, measure


def load(folder: str, longest: int) -> Generate:
    """Its own export, on its own default provider."""
    import onnxruntime_genai as og

    model = og.Model(folder)
    # the loop ends by itself: of models with a window release 0.18 wants buffers at least as long as it
    window = _window(json.loads((Path(folder) / "genai_config.json").read_text(encoding="utf-8")))

    def generate(ids: list[int], new: int) -> tuple[float, float]:
        parameters = og.GeneratorParams(model)
        # no end before the last token
        length = len(ids) + new + 1
        parameters.set_search_options(do_sample=False, min_length=length, max_length=max(length, window))
        generator = og.Generator(model, parameters)
        start = time.perf_counter()
        generator.append_tokens(np.array([ids], np.int32))
        generator.generate_next_token()
        prefilled = time.perf_counter()
        for _ in range(new):
            generator.generate_next_token()
        return prefilled - start, time.perf_counter() - prefilled

    return generate


def _window(config: dict[str, Any]) -> int:
    sliding = config["model"]["decoder"].get("sliding_window") or {}
    return int(sliding.get("window_size", 0))


if __name__ == "__main__":
    measure(load)
