"""Choosing the next token from logits."""

from __future__ import annotations

from gemma_runtime.sampling.chooser import TokenChooser
from gemma_runtime.sampling.distribution import Distribution
from gemma_runtime.sampling.logprobs import TokenLogprob
from gemma_runtime.sampling.options import Sampling

__all__ = ["Distribution", "Sampling", "TokenChooser", "TokenLogprob"]
