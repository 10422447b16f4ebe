"""Speed of OpenVINO GenAI; runs in the peer's environment: openvino_speed.py FOLDER PROMPTS CONTEXTS NEW."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

# run as a file: the package's parent is not on the path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed_protocol import Generate, measure


def load(folder: str, longest: int) -> Generate:
    """Its pipeline on the CPU, everything at its defaults."""
    import openvino
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(folder, "CPU")

    def generate(ids: list[int], new: int) -> tuple[float, float]:
        config = openvino_genai.GenerationConfig(max_new_tokens=new + 1, ignore_eos=True, do_sample=False)
        row = np.array([ids], np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(row), openvino.Tensor(np.ones_like(row)))
        start = time.perf_counter()
        metrics = pipeline.generate(inputs, config).perf_metrics
        total = time.perf_counter() - start
        made = metrics.get_num_generated_tokens()
        if made != new + 1:
            sys.exit(f"{made} tokens came out, {new + 1} were asked for")
        # its own clock knows when the first token was there; milliseconds
        first = metrics.get_ttft().mean / 1e3
        return first, total - first

    return generate


if __name__ == "__main__":
    measure(load)
