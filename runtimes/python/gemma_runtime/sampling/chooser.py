"""One sequence's choices: from logits to the next token, with what has been chosen so far."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence, Set
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemma_runtime.errors import ModelOutputError, PromptError
from gemma_runtime.sampling.candidates import Candidates
from gemma_runtime.sampling.distribution import Distribution, certain, draw, residual
from gemma_runtime.sampling.logprobs import TokenLogprob, token_logprob
from gemma_runtime.sampling.options import Sampling, is_integer, refuse
from gemma_runtime.sampling.processors import Penalties

if TYPE_CHECKING:
    from gemma_runtime.constraints import ConstraintState

__all__ = ["TokenChooser"]

# A token this much less likely than the most likely one: all such tokens of a vocabulary of 256,000 together have less
# than 1e-12 and are left out of distributions.
_NEGLIGIBLE = math.exp(-40)


class TokenChooser:
    """Chooses the tokens of one generated sequence.

    The options apply in this order, which is that of transformers
    (https://github.com/huggingface/transformers/blob/main/src/transformers/generation/utils.py,
    `_get_logits_processor`); llama.cpp has the same one but for the temperature, which it applies last:
    the constraint's mask, logit bias and bans, repetition penalty, presence and frequency penalties, stop tokens banned
    until `min_new_tokens`, temperature, top-k, top-p, min-p.

    Args:
        sampling: the options.
        vocab_size: how many logits the model gives.
        prompt_ids: the prompt, for the repetition penalty.
        stop_ids: tokens that end the sequence.
        min_new_tokens: no stop token before that many tokens, unless the constraint allows nothing else.
        allowed_size: ids at and above it never come (rows of the table that the tokenizer has no piece for); None
            allows all.
        banned: ids below it that never come either, whatever their bias (tokens of images), unless they end the text.
        constraint: what the text must match; its state moves on with `accept`.
        logprobs: how many alternatives `logprob` names; None is 0.

    Raises:
        PromptError: an option outside its range, or a bias of an id outside the vocabulary.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        vocab_size: int,
        prompt_ids: Sequence[int],
        stop_ids: Set[int] = frozenset(),
        min_new_tokens: int = 0,
        allowed_size: int | None = None,
        banned: Collection[int] = (),
        constraint: ConstraintState | None = None,
        logprobs: int | None = None,
    ) -> None:
        if not is_integer(min_new_tokens) or min_new_tokens < 0:
            refuse("min-new-tokens", "0 or above", min_new_tokens)
        if logprobs is not None and not (is_integer(logprobs) and 0 <= logprobs <= vocab_size):
            refuse("logprobs", f"from 0 to {vocab_size}", logprobs)
        self.sampling = sampling
        self.generator = sampling.generator()
        self._size = vocab_size if allowed_size is None else min(allowed_size, vocab_size)
        self._penalties = Penalties(
            sampling,
            vocab_size=vocab_size,
            allowed_size=self._size,
            prompt_ids=prompt_ids,
            stop_ids=stop_ids,
            banned=banned,
        )
        self._candidates = None if self.greedy else Candidates(sampling, self._size)
        self._min_new_tokens = min_new_tokens
        self._constraint = constraint
        self._alternatives = logprobs or 0
        self._tokens: list[int] = []
        self._buffer: npt.NDArray[np.float32] | None = None

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken and nothing is drawn."""
        return self.sampling.temperature == 0

    @property
    def finished(self) -> bool:
        """Whether the constraint allows nothing but the end."""
        return self._constraint is not None and self._constraint.finished

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token: the most likely one (of equal ones the smallest id), or one draw of `generator`.

        Args:
            logits: float32 [vocab_size], not modified.

        Raises:
            PromptError: the options ban every token.
            ModelOutputError: logits that are NaN or plus infinity.
        """
        best, weighed = self._weighed(logits)
        if weighed is None:
            return best
        ids, weights = weighed
        place = draw(weights, self.generator.random())
        return place if ids is None else int(ids[place])

    def distribution(self, logits: npt.NDArray[np.float32]) -> Distribution:
        """What `choose` draws from; for greedy choice its one token.

        Args:
            logits: float32 [vocab_size], not modified.

        Raises:
            PromptError: the options ban every token.
            ModelOutputError: logits that are NaN or plus infinity.
        """
        best, weighed = self._weighed(logits)
        if weighed is None:
            return certain(best)
        ids, weights = weighed
        kept = np.flatnonzero(weights > _NEGLIGIBLE)
        probabilities = weights[kept].astype(np.float64)
        probabilities /= probabilities.sum()
        return Distribution(ids=kept if ids is None else ids[kept], probabilities=probabilities)

    def draw(self, distribution: Distribution) -> int:
        """One draw of `generator`."""
        return int(distribution.ids[draw(distribution.probabilities, self.generator.random())])

    def verify(
        self, logits: npt.NDArray[np.float32], guess: int, drawn_from: Distribution | None = None
    ) -> tuple[int, bool]:
        """The next token where one was guessed: distributed as what `choose` gives, and as often as can be the guess.

        Args:
            logits: float32 [vocab_size], not modified.
            guess: kept with probability min(1, p/q), otherwise replaced: see `gemma_runtime.sampling.distribution`.
            drawn_from: q; if not given the guess is what it is, and kept where `choose` gives it.

        Returns:
            The token, and whether the guess was kept: a replacement may be the same token.

        Raises:
            PromptError, ModelOutputError: see `choose`.
        """
        if self.greedy or drawn_from is None:
            # Of a guess that was not drawn, q is 1: a plain draw equals it with probability p, just as often. With one
            # draw a token a seed's text is the same whether something was guessed, which the clock decides, or not.
            token = self.choose(logits)
            return token, token == guess
        target = self.distribution(logits)
        if self.generator.random() * drawn_from.probability(guess) < target.probability(guess):
            return guess, True
        return self.draw(residual(target, drawn_from)), False

    def margin(self, logits: npt.NDArray[np.float32]) -> float:
        """By how much the most likely token's logit exceeds the next one's, everything but the temperature applied.

        Args:
            logits: float32 [vocab_size], not modified.
        """
        processed = self._processed(logits)
        best = self._most_likely(processed)
        others = max(part.max() for part in (processed[:best], processed[best + 1 :]) if len(part))
        return float(processed[best] - others)

    def accept(self, token: int) -> None:
        """The sequence has one more token; a stop token that ends it need not be told.

        Raises:
            ValueError: a token that the constraint does not allow.
        """
        if self._constraint is not None:
            self._constraint.accept(token)
        self._penalties.count(token)
        self._tokens.append(token)

    def rollback(self, count: int) -> None:
        """Takes the last `count` accepted tokens back; draws are not taken back.

        Raises:
            ValueError: more than there are.
        """
        if not 0 <= count <= len(self._tokens):
            raise ValueError(f"cannot take {count} of {len(self._tokens)} tokens back")
        if count and self._constraint is not None:
            self._constraint.rollback(count)
        for _ in range(count):
            self._penalties.count(self._tokens.pop(), -1)

    def logprob(self, logits: npt.NDArray[np.float32], token: int) -> TokenLogprob:
        """The model's own log-probability of a token, before any option, and of the most likely alternatives.

        Args:
            logits: float32 [vocab_size], as given to `choose`.
            token: an id of the vocabulary.
        """
        return token_logprob(logits, token, self._alternatives)

    def _weighed(
        self, logits: npt.NDArray[np.float32]
    ) -> tuple[int, tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.float32] | npt.NDArray[np.float64]] | None]:
        """The most likely token, and unless that is taken the candidates (None: all) with their weights."""
        processed = self._processed(logits)
        best = self._most_likely(processed)
        return best, None if self._candidates is None else self._candidates.weigh(processed, float(processed[best]))

    def _processed(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits with everything but temperature and what follows it: float32 [allowed_size], maybe a view."""
        allowed = logits[: self._size]
        # where the grammar has ended, banning the end would leave nothing
        ban_stops = len(self._tokens) < self._min_new_tokens and not self.finished
        if not (self._penalties.active or ban_stops or self._constraint is not None):
            return allowed
        if self._buffer is None:
            self._buffer = np.empty(self._size, np.float32)
        np.copyto(self._buffer, allowed)
        self._penalties.apply(self._buffer, ban_stops=ban_stops)
        if self._constraint is not None:
            self._constraint.mask(self._buffer)
            if ban_stops and self._buffer.max() == -np.inf:
                # nothing but the end fits
                np.copyto(self._buffer, allowed)
                self._penalties.apply(self._buffer, ban_stops=False)
                self._constraint.mask(self._buffer)
        return self._buffer

    def _most_likely(self, processed: npt.NDArray[np.float32]) -> int:
        best = int(processed.argmax())
        value = processed[best]
        # the first NaN is numpy's largest number: this costs no pass of its own
        if np.isnan(value) or value == np.inf:
            raise ModelOutputError(
                f"the logit of token {best} is {value} at new token {len(self._tokens)}",
                hint="float16 overflowed: export with --residual-scale measure or with --fp32, and report the prompt.",
            )
        if value == -np.inf:
            raise PromptError(
                f"the options leave no token to choose at new token {len(self._tokens)}",
                hint="Loosen the logit bias, the constraint or min-new-tokens: together they ban everything.",
            )
        return best
