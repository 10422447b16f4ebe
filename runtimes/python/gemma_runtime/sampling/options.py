"""How the next token is to be chosen."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import NoReturn

import numpy as np

from gemma_runtime.errors import PromptError

__all__ = ["Sampling", "is_integer", "refuse", "require"]

# OpenAI's range: https://platform.openai.com/docs/api-reference/chat/create
_PENALTY_LIMIT = 2.0
_SEED_LIMIT = 2**63
# characters of a wrong value in a message
_LONGEST_SHOWN = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose; the default is greedy. `TokenChooser` says in which order the options apply.

    Raises:
        PromptError: a value outside its range.
    """

    # 0 is greedy; otherwise logits are divided by it
    temperature: float = 0.0
    # keep the k most likely tokens, of equal ones those with the smaller ids; None keeps all
    top_k: int | None = None
    # then keep the fewest most likely tokens whose probabilities sum to at least p; None keeps all
    # (nucleus sampling, https://arxiv.org/abs/1904.09751)
    top_p: float | None = None
    # then keep the tokens at least this fraction as likely as the most likely one; None keeps all
    # (https://arxiv.org/abs/2407.01082)
    min_p: float | None = None
    # the logit of every token of prompt and answer is divided by it where positive, multiplied where negative; 1 is off
    # (CTRL, https://arxiv.org/abs/1909.05858, for negative logits as transformers does it)
    repetition_penalty: float = 1.0
    # subtracted from the logit of every token that the answer already has; 0 is off
    presence_penalty: float = 0.0
    # subtracted from a token's logit once for each time that the answer has it; 0 is off
    frequency_penalty: float = 0.0
    # added to the logits of these token ids; minus infinity bans a token
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict, hash=False)
    # of numpy's PCG64; the same seed gives the same tokens for the same logits
    seed: int = 0

    def __post_init__(self) -> None:
        require(_number(self.temperature) and self.temperature >= 0, "temperature", "0 or above", self.temperature)
        require(self.top_k is None or (is_integer(self.top_k) and self.top_k >= 1), "top-k", "1 or above", self.top_k)
        require(
            self.top_p is None or (_number(self.top_p) and 0 < self.top_p <= 1),
            "top-p",
            "above 0 and up to 1",
            self.top_p,
        )
        require(
            self.min_p is None or (_number(self.min_p) and 0 <= self.min_p <= 1), "min-p", "from 0 to 1", self.min_p
        )
        repetition = self.repetition_penalty
        require(_number(repetition) and repetition > 0, "repetition-penalty", "above 0", repetition)
        for name in ("presence", "frequency"):
            penalty = getattr(self, f"{name}_penalty")
            holds = _number(penalty) and abs(penalty) <= _PENALTY_LIMIT
            require(holds, f"{name}-penalty", "from -2 to 2", penalty)
        self._check_bias()
        require(is_integer(self.seed) and self.seed >= 0, "seed", "0 or above", self.seed)
        require(self.seed <= _SEED_LIMIT, "seed", "2^63 or below", self.seed)

    def _check_bias(self) -> None:
        require(isinstance(self.logit_bias, Mapping), "logit-bias", "numbers by token id", self.logit_bias)
        for token, bias in self.logit_bias.items():
            require(is_integer(token) and token >= 0, "logit-bias", "of token ids, 0 or above", token)
            holds = bias == -math.inf or _number(bias)
            require(holds, f"logit-bias of token {token}", "a finite number, or minus infinity for a ban", bias)
        # what the caller does with his mapping later changes nothing here
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def for_draft(self, vocab_size: int) -> Sampling:
        """How a smaller model guesses: without what depends on the text so far, and with random numbers of its own.

        Numbers that also decide what is kept would make kept guesses others than the model draws.

        Args:
            vocab_size: logits of the smaller model; biases of other tokens are left out.
        """
        return dataclasses.replace(
            self,
            repetition_penalty=1.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            logit_bias={token: bias for token, bias in self.logit_bias.items() if token < vocab_size},
            seed=int(np.random.SeedSequence((int(self.seed), 1)).generate_state(1, np.uint64)[0]) >> 1,
        )

    def generator(self) -> np.random.Generator:
        """The random numbers of one generation."""
        return np.random.default_rng(self.seed)


def is_integer(value: object) -> bool:
    """Whether it is a whole number and no truth value; numpy's integers are."""
    return not isinstance(value, bool) and isinstance(value, numbers.Integral)


def refuse(name: str, expected: str, found: object) -> NoReturn:
    """Raises the error of an option outside its range."""
    raise PromptError(f"{name} must be {expected}, found {_shown(found)}", hint="See gemma-run --help.")


def require(holds: bool, name: str, expected: str, found: object) -> None:
    """Raises the error of an option outside its range, unless it is inside."""
    if not holds:
        refuse(name, expected, found)


def _shown(found: object) -> str:
    try:
        text = str(found)
    except ValueError:
        # more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _number(value: object) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)
    except OverflowError:
        # a whole number or a fraction beyond the largest float
        return False
