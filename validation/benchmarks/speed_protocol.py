"""What every runner of the speed benchmark measures and prints; imported in the peers' environments too.

A runner is called with FOLDER PROMPTS CONTEXTS NEW [more of its own]: what to load, prompt lengths and contexts joined
by commas, and the tokens to decode behind each context. Each length is one prompt of random token ids, a new one each
time, because some peers keep what they have read; each new token is the greedy one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

__all__ = ["FIRST_PROMPT", "Generate", "Load", "measure"]

# prompt of the time to the first token
FIRST_PROMPT = 128

# (prompt, tokens to decode behind its first one) -> (seconds until the first token, seconds of the others)
Generate = Callable[[list[int], int], tuple[float, float]]
# (folder, tokens of the longest sequence) -> generate; it imports its library itself, since that is part of loading
Load = Callable[[str, int], Generate]

_WARM_UP_TOKENS = 4


def measure(load: Load) -> None:
    """Loads, generates once for each length, and prints the figures as JSON."""
    folder, new = sys.argv[1], int(sys.argv[4])
    prompts, contexts = ({int(length) for length in text.split(",") if length} for text in sys.argv[2:4])
    lengths = sorted(prompts | contexts)
    longest = max([FIRST_PROMPT, *lengths]) + max(new, _WARM_UP_TOKENS) + 1
    random = np.random.default_rng(0)
    began = time.perf_counter()
    generate = load(folder, longest)
    loaded = time.perf_counter() - began
    # also what warms up: some peers compile when they run first
    first, _ = generate(_prompt(random, FIRST_PROMPT), _WARM_UP_TOKENS)
    figures = {"load": loaded, "first_token": loaded + first}
    for length in lengths:
        count = new if length in contexts else 1
        prefill, decode = generate(_prompt(random, length), count)
        figures[f"prefill_{length}"] = length / prefill
        if length in contexts:
            figures[f"decode_{length}"] = count / decode
    print(json.dumps(figures))


def _prompt(random: np.random.Generator, length: int) -> list[int]:
    # no special or byte tokens, and ids that every shape's vocabulary has
    ids: list[int] = random.integers(256, 3000, length).tolist()
    return ids
