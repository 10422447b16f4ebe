"""The text that calibrations look at and that KL is measured on."""

from __future__ import annotations

import torch

from gemma_export.checkpoint import Checkpoint
from gemma_export.config import DecoderSpec
from gemma_export.headroom import probes_for

__all__ = ["calibration_batches"]

# "long" repeats the other texts, and BOS alone is no text
_LEFT_OUT = frozenset({"long", "random long", "bos"})


def calibration_batches(checkpoint: Checkpoint, spec: DecoderSpec) -> tuple[torch.Tensor, ...]:
    """Token ids, int64 [1, length] each, BOS first, at least two tokens: the built-in texts.

    Raises:
        MissingResourceError, ConfigError: the tokenizer cannot be used.
    """
    probes = [probe for probe in probes_for(checkpoint, spec) if probe.name not in _LEFT_OUT]
    return tuple(torch.tensor([probe.token_ids]) for probe in probes if len(probe.token_ids) > 1)
