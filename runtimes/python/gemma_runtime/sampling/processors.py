"""Options that change the logits of a few tokens: bias, bans and penalties."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from gemma_runtime.sampling.options import Sampling, refuse

__all__ = ["Penalties"]

_LARGEST = float(np.finfo(np.float32).max)


class Penalties:
    """Logit bias, then repetition penalty, then presence and frequency penalties, then bans.

    All of them are computed for the tokens they touch, never for a whole vocabulary: those of the prompt and the
    answer, and those with a bias.

    Args:
        sampling: the options.
        vocab_size: how many logits there are.
        allowed_size: ids at and above it are never chosen, so nothing is computed for them.
        prompt_ids: what the repetition penalty counts besides the answer.
        stop_ids: banned by `apply` on request.
        banned: always banned, unless they end the text.

    Raises:
        PromptError: a bias of an id outside the vocabulary.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        vocab_size: int,
        allowed_size: int,
        prompt_ids: Sequence[int],
        stop_ids: Iterable[int],
        banned: Iterable[int] = (),
    ) -> None:
        self._repetition = float(sampling.repetition_penalty)
        self._presence = float(sampling.presence_penalty)
        self._frequency = float(sampling.frequency_penalty)
        self._size = allowed_size
        stops = {token for token in stop_ids if token < allowed_size}
        self._stops = np.array(sorted(stops), np.int64)
        self._banned = np.array(
            sorted(token for token in banned if token < allowed_size and token not in stops), np.int64
        )
        self._counts_answer = self._repetition != 1 or self._presence != 0 or self._frequency != 0
        # of each touched token: its id, its bias, how often prompt and answer have it, how often the answer has it
        self._places: dict[int, int] = {}
        self._ids = np.zeros(64, np.int64)
        self._bias = np.zeros(64)
        self._seen = np.zeros(64)
        self._generated = np.zeros(64)
        for token, bias in sampling.logit_bias.items():
            if token >= vocab_size:
                refuse("logit-bias", f"of token ids below {vocab_size}", token)
            if token < allowed_size and bias:
                place = self._place(int(token))
                self._bias[place] = bias
        if self._repetition != 1:
            for token, times in zip(*np.unique(np.asarray(prompt_ids, np.int64), return_counts=True), strict=True):
                if 0 <= token < allowed_size:
                    place = self._place(int(token))
                    self._seen[place] += times

    @property
    def active(self) -> bool:
        """Whether `apply` changes anything, but for stop tokens."""
        return bool(self._places) or len(self._banned) > 0

    def count(self, token: int, times: int = 1) -> None:
        """The answer has a token once more, or with -1 once less."""
        if self._counts_answer and 0 <= token < self._size:
            place = self._place(token)
            self._seen[place] += times
            self._generated[place] += times

    def apply(self, logits: npt.NDArray[np.float32], *, ban_stops: bool) -> None:
        """Changes logits in place.

        Args:
            logits: float32 [allowed_size].
            ban_stops: also ban the stop tokens.
        """
        count = len(self._places)
        if count:
            ids, generated = self._ids[:count], self._generated[:count]
            values = logits[ids].astype(np.float64) + self._bias[:count]
            finite = np.isfinite(values)
            unchanged = values
            # a penalty of 1e300 overflows even here; the clip below brings it back
            with np.errstate(over="ignore"):
                penalised = np.where(values > 0, values / self._repetition, values * self._repetition)
            values = np.where(self._seen[:count] > 0, penalised, values)
            values -= generated * self._frequency + (generated > 0) * self._presence
            # what is not banned stays a number in float32; a model's NaN stays one too
            logits[ids] = np.where(finite, np.clip(values, -_LARGEST, _LARGEST), unchanged)
        logits[self._banned] = -np.inf
        if ban_stops:
            logits[self._stops] = -np.inf

    def _place(self, token: int) -> int:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            for name in ("_ids", "_bias", "_seen", "_generated"):
                column = getattr(self, name)
                setattr(self, name, np.concatenate((column, np.zeros_like(column))))
        self._ids[place] = token
        return place
