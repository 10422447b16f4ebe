"""The terms notice that travels with Gemma weights, in whatever format they are."""

from __future__ import annotations

from pathlib import Path

from gemma_export.consumers.consumer import Consumer, FolderFacts

__all__ = ["TERMS"]

# Google asks that this sentence accompanies distributed Gemma models: https://ai.google.dev/gemma/terms (section 3.1)
_GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n"
_TINY_NOTICE = (
    "The weights of this built-in model were trained by the gemma-export project on the Python standard library's\n"
    "sources (Python Software Foundation License Version 2, https://docs.python.org/3/license.html). They contain no\n"
    "Gemma weights: only the architecture is Gemma's.\n"
)
_SYNTHETIC_NOTICE = "The weights in this folder are random numbers. They come from no checkpoint.\n"


def _files(facts: FolderFacts) -> dict[str, bytes | Path]:
    if facts.source_kind == "synthetic":
        notice = _SYNTHETIC_NOTICE
    elif facts.source_kind == "builtin":
        notice = _TINY_NOTICE
    else:
        notice = _GEMMA_NOTICE
    if facts.adapter is not None:
        notice += f"The adapter {facts.adapter} is merged into these weights; its own terms hold too.\n"
    return {"NOTICE": notice.encode()}


TERMS = Consumer(name="terms", files=_files)
