"""Load a folder that gemma-export wrote and generate text: numpy, onnxruntime and a tokenizer, never torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma_runtime.generate import Generation, TextGenerator
    from gemma_runtime.manifest import Manifest, read_manifest
    from gemma_runtime.sampling import Sampling

__all__ = ["Generation", "Manifest", "Sampling", "TextGenerator", "read_manifest"]

_HOME = {
    "Generation": "generate",
    "TextGenerator": "generate",
    "Manifest": "manifest",
    "Sampling": "sampling",
    "read_manifest": "manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
