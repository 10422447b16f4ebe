"""Load a folder that gemma-export wrote and generate text: numpy, onnxruntime and a tokenizer, never torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma_runtime.answer import Answer, AnswerKeywords, AnswerOptions
    from gemma_runtime.chat import Message
    from gemma_runtime.chat_session import Chat
    from gemma_runtime.classify import Judge, Judgement
    from gemma_runtime.constraints import Constraint
    from gemma_runtime.manifest import Manifest, read_manifest
    from gemma_runtime.model import Conversation, Gemma
    from gemma_runtime.policies import POLICIES, Policy
    from gemma_runtime.results import Completion, Piece, SpeculationStats, TokenLogprob
    from gemma_runtime.sampling import Sampling

__all__ = [
    "POLICIES",
    "Answer",
    "AnswerKeywords",
    "AnswerOptions",
    "Chat",
    "Completion",
    "Constraint",
    "Conversation",
    "Gemma",
    "Judge",
    "Judgement",
    "Manifest",
    "Message",
    "Piece",
    "Policy",
    "Sampling",
    "SpeculationStats",
    "TokenLogprob",
    "read_manifest",
]

_HOME = {
    "POLICIES": "policies",
    "Answer": "answer",
    "AnswerKeywords": "answer",
    "AnswerOptions": "answer",
    "Chat": "chat_session",
    "Completion": "results",
    "Constraint": "constraints",
    "Conversation": "model",
    "Gemma": "model",
    "Judge": "classify",
    "Judgement": "classify",
    "Manifest": "manifest",
    "Message": "chat",
    "Piece": "results",
    "Policy": "policies",
    "Sampling": "sampling",
    "SpeculationStats": "results",
    "TokenLogprob": "results",
    "read_manifest": "manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
