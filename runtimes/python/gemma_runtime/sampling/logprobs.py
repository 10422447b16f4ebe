"""What the model itself thought of a token, before any option."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from gemma_runtime.sampling.candidates import largest

__all__ = ["TokenLogprob", "token_logprob"]

# numbers in float64 at a time: a whole vocabulary's would get fresh memory from the system at each use
_PART = 16_384


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """Natural logarithms of probabilities at temperature 1, whatever the sampling options are."""

    token: int
    logprob: float
    # (token id, logprob) of the most likely tokens, the most likely first, of equal ones the smaller id first
    alternatives: tuple[tuple[int, float], ...] = ()


def token_logprob(logits: npt.NDArray[np.float32], token: int, count: int) -> TokenLogprob:
    """A token's log-softmax, and the `count` most likely tokens.

    Args:
        logits: float32 [vocab_size], as the model gave them.
        token: an id of the vocabulary.
        count: 0 or above.
    """
    top = float(logits.max())
    total = math.log(
        math.fsum(
            float(np.exp(logits[start : start + _PART].astype(np.float64) - top).sum())
            for start in range(0, len(logits), _PART)
        )
    )
    ids = largest(logits, min(count, len(logits))) if count else np.empty(0, np.int64)
    order = ids[np.argsort(-logits[ids], kind="stable")]
    return TokenLogprob(
        token=token,
        logprob=float(logits[token]) - top - total,
        alternatives=tuple((int(other), float(logits[other]) - top - total) for other in order),
    )
