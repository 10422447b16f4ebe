"""Checkpoints made from the built-in one that show what the built-in one hides."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["GROWTH", "ODD_HIDDEN_SIZE", "write_grown", "write_odd_width"]

# the built-in stream peaks at 102: times 2^15 at 3.3 million, where float16 ends at 65504
GROWTH = 2.0**15
# sqrt(258) = 16.0624 lies nearly midway between two bfloat16 numbers, 16 and 16.125
ODD_HIDDEN_SIZE = 258
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_EMBEDDING = "model.embed_tokens.weight"
_WRITERS = ("o_proj.weight", "down_proj.weight")

Tensors = dict[str, npt.NDArray[np.float32]]


def write_grown(directory: Path) -> Path:
    """The built-in model with everything that writes to the stream times 2^15; its own table becomes the head.

    Norms take the factor out again: the logits stay those of the built-in model up to the epsilon's weight.

    Args:
        directory: of the checkpoint; must not exist.
    """

    def grow(tensors: Tensors) -> Tensors:
        head = {"lm_head.weight": tensors[_EMBEDDING]}
        grown = (_EMBEDDING, *_WRITERS)
        return head | {name: w * np.float32(GROWTH) if name.endswith(grown) else w for name, w in tensors.items()}

    return _write(directory, grow, tie_word_embeddings=False)


def write_odd_width(directory: Path) -> Path:
    """The built-in model with a hidden size of 258: two channels of zeros more, every function as before.

    With c = sqrt(256 / 258): embeddings become c times as large, for the larger scale sqrt(258). A norm over more
    channels divides by a root mean square c times as large, which its gain 1 + w, times c, takes back. The final gain
    stays: the tied head is c times as large already.

    Args:
        directory: of the checkpoint; must not exist.
    """

    def widen(tensors: Tensors) -> Tensors:
        narrow = tensors[_EMBEDDING].shape[1]
        ratio = math.sqrt(narrow / ODD_HIDDEN_SIZE)
        wide = {}
        for name, weight in tensors.items():
            values = weight.astype(np.float64)
            if name == _EMBEDDING:
                values *= ratio
            elif "norm" in name and name != "model.norm.weight":
                values = (1 + values) * ratio - 1
            # the channels of the stream: rows of what writes to it, the last axis of everything else
            axis = 0 if name.endswith(_WRITERS) else values.ndim - 1
            more = [(0, ODD_HIDDEN_SIZE - narrow if i == axis else 0) for i in range(values.ndim)]
            wide[name] = np.pad(values, more).astype(np.float32)
        return wide

    return _write(directory, widen, hidden_size=ODD_HIDDEN_SIZE)


def _write(directory: Path, change: Callable[[Tensors], Tensors], **config: Any) -> Path:
    # safetensors gives bfloat16 as its type, which numpy knows once it is imported
    import ml_dtypes
    from safetensors.numpy import load_file, save_file

    from gemma_export.checkpoint import BUILTIN_DIRECTORY

    directory.mkdir(parents=True)
    # numpy reads bfloat16 by ml_dtypes, which safetensors looks up by name
    assert ml_dtypes.bfloat16
    tensors = load_file(BUILTIN_DIRECTORY / "model.safetensors")
    save_file(
        change({name: weight.astype(np.float32) for name, weight in tensors.items()}), directory / "model.safetensors"
    )
    content = json.loads((BUILTIN_DIRECTORY / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**content, "torch_dtype": "float32", **config}, indent=1)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")
    for name in _TOKENIZER_FILES:
        shutil.copy(BUILTIN_DIRECTORY / name, directory / name)
    return directory
