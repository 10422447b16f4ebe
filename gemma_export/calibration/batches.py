"""What the reference is run on where channels are scaled and KL is measured."""

from __future__ import annotations

import torch

from gemma_export.calibration.text import Sequences
from gemma_export.checkpoint import Checkpoint
from gemma_export.config import DecoderSpec
from gemma_export.headroom import probes_for

__all__ = ["measured_batches"]

# "long" repeats the other texts, and BOS alone is no text
_LEFT_OUT = frozenset({"long", "random long", "bos"})
# sequences of a text that was cut for a quantiser, which learns from more
_MOST = 16


def measured_batches(
    checkpoint: Checkpoint, spec: DecoderSpec, calibration: Sequences | None = None
) -> tuple[torch.Tensor, ...]:
    """Token ids, int64 [1, length] each, BOS first, at least two tokens: the user's text, or the built-in probes.

    Raises:
        MissingResourceError, ConfigError: the tokenizer cannot be used.
    """
    if calibration is None:
        probes = [probe.token_ids for probe in probes_for(checkpoint, spec) if probe.name not in _LEFT_OUT]
    else:
        probes = list(calibration.token_ids[:: -(-len(calibration.token_ids) // _MOST)])
    return tuple(torch.tensor([ids]) for ids in probes if len(ids) > 1)
