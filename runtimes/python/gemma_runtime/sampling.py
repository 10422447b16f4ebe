"""Choosing the next token from logits."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_runtime.errors import PromptError

__all__ = ["Sampling", "choose"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose; the default is greedy.

    Raises:
        PromptError: a value outside its range.
    """

    # 0 is greedy; otherwise logits are divided by it
    temperature: float = 0.0
    # keep the k most likely tokens; None keeps all
    top_k: int | None = None
    # then keep the fewest most likely tokens whose probabilities sum to at least p; None keeps all
    top_p: float | None = None
    # of numpy's PCG64; the same seed gives the same tokens for the same logits
    seed: int = 0

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "0 or above", self.temperature
        )
        _require(self.top_k is None or self.top_k >= 1, "top-k", "1 or above", self.top_k)
        _require(self.top_p is None or 0 < self.top_p <= 1, "top-p", "above 0 and up to 1", self.top_p)
        _require(self.seed >= 0, "seed", "0 or above", self.seed)

    def generator(self) -> np.random.Generator:
        """The random numbers of one generation."""
        return np.random.default_rng(self.seed)


def _require(holds: bool, name: str, expected: str, found: object) -> None:
    if not holds:
        raise PromptError(f"{name} must be {expected}, found {found}", hint="See gemma-run --help.")


def choose(logits: npt.NDArray[np.float32], sampling: Sampling, generator: np.random.Generator) -> int:
    """The next token.

    Args:
        logits: [vocab_size], finite.
        sampling: how to choose.
        generator: advanced by one draw unless greedy.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    candidates = _top_k(logits, sampling.top_k)
    # float64: a cumulative sum of 256,000 float32 probabilities is off by more than a nucleus' edge
    scaled = logits[candidates].astype(np.float64)
    # the difference first: at a tiny temperature the quotient itself would overflow
    with np.errstate(over="ignore"):
        probabilities = np.exp((scaled - scaled.max()) / sampling.temperature)
    probabilities /= probabilities.sum()
    if sampling.top_p is not None:
        candidates, probabilities = _top_p(candidates, probabilities, sampling.top_p)
    edges = probabilities.cumsum()
    drawn = np.searchsorted(edges, generator.random() * edges[-1], side="right")
    return int(candidates[min(int(drawn), len(candidates) - 1)])


def _top_k(logits: npt.NDArray[np.float32], k: int | None) -> npt.NDArray[np.int64]:
    """Ids of the k largest logits in ascending order of id, ties by the smaller id."""
    if k is None or k >= len(logits):
        return np.arange(len(logits))
    threshold = np.partition(logits, -k)[-k]
    above = np.flatnonzero(logits > threshold)
    ties = np.flatnonzero(logits == threshold)[: k - len(above)]
    return np.sort(np.concatenate((above, ties)))


def _top_p(
    candidates: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64], p: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    order = np.argsort(-probabilities, kind="stable")
    # the token that crosses p stays in
    count = int(np.searchsorted(probabilities[order].cumsum(), p)) + 1
    kept = order[:count]
    return candidates[kept], probabilities[kept]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distribution:
    """Tokens and their probabilities."""

    ids: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]


class TokenChooser:
    """Chooses the tokens of one sequence."""

    def __init__(
        self,
        sampling: Sampling,
        *,
        vocab_size: int,
        prompt_ids: Any = (),
        stop_ids: Any = frozenset(),
        min_new_tokens: int = 0,
        allowed_size: int | None = None,
        constraint: Any = None,
        logprobs: int | None = None,
    ) -> None:
        self._sampling, self._generator = sampling, sampling.generator()
        self.greedy = sampling.temperature == 0
        self.finished = False

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token."""
        return choose(logits, self._sampling, self._generator)

    def accept(self, token: int) -> None:
        """Takes a token into the history."""

    def margin(self, logits: npt.NDArray[np.float32]) -> float:
        """By how much the best token's logit exceeds the next one's."""
        second, first = np.partition(logits, -2)[-2:]
        return float(first - second)
