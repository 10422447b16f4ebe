"""The loop over tokens: the prompt, then runs of the model for one token or for several guessed ones.

Guesses do not change what comes out. A token is chosen from the logits after the true text only: the run checks a guess
by choosing, at its place, as if there had been none; the first guess that is not what was chosen ends the run's use.

Greedy decoding: kernels add up in another order for several rows than for one, so logits differ by rounding (and where
activations are rounded to 8 bits by more). Where the best two tokens are close enough for that to turn them around, the
position is run again alone and that decides. What earlier runs of several left in the cache stays, so where the best
two are that close plain steps may still choose the other.

Sampling: a guess from the text is kept where a plain draw gives it, one draw for each token, so that a seed's text is
that of decoding without guesses. A guess x drawn from q is kept with probability min(1, p(x) / q(x)), otherwise a token
is drawn from what p has in excess of q: the result is distributed as p (https://arxiv.org/abs/2211.17192, theorem in
appendix A.1).
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemma_runtime.errors import ModelOutputError
from gemma_runtime.results import SpeculationStats, TokenLogprob
from gemma_runtime.sequence import TokenSequence
from gemma_runtime.speculation.drafter import NO_DRAFT, Draft, Drafter
from gemma_runtime.speculation.kernel_difference import KernelDifference

if TYPE_CHECKING:
    from gemma_runtime.sampling import TokenChooser

__all__ = ["Chosen", "Decoding", "check_finite"]

_Row = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """One token of the answer."""

    token: int
    logprob: TokenLogprob | None


class Decoding:
    """One answer in the making. Iterate over `run`; when it ends, the attributes say why and how fast.

    Args:
        sequence: may hold a beginning of the prompt already.
        chooser: of this answer.
        stop_ids: tokens that end it and are left out.
        room: tokens at most; the prompt and all but the last of them fit the context.
        drafter: guesses ahead; None runs one token at a time.
        difference: what is known of runs of several tokens when the answer begins; asked once, if something is guessed.
        cancel: ends the answer as soon as it is set.
        logprobs: whether each token comes with its log probability.
    """

    def __init__(
        self,
        sequence: TokenSequence,
        chooser: TokenChooser,
        *,
        stop_ids: frozenset[int],
        room: int,
        drafter: Drafter | None = None,
        difference: Callable[[], KernelDifference] = KernelDifference,
        cancel: threading.Event | None = None,
        logprobs: bool = False,
    ) -> None:
        self._sequence, self._chooser, self._drafter = sequence, chooser, drafter
        self._stop_ids, self._room, self._logprobs = stop_ids, room, logprobs
        self._cancelled: Callable[[], bool] = (lambda: False) if cancel is None else cancel.is_set
        self._known = difference
        # this answer's own, from its first guess on
        self._difference: KernelDifference | None = None
        # tokens chosen, the stop token not among them
        self.tokens: list[int] = []
        # "stop", "length" or "cancelled"; None while it runs
        self.finish_reason: str | None = None
        # whether a stop token ended it
        self.stop_token = False
        self.cached_tokens = 0
        # from the start until the first token was chosen
        self.prefill_seconds = 0.0
        # runs after the prompt
        self.steps = 0
        self._drafted = self._accepted = self._rechecked = self._changed = 0
        # of the last run: how many guesses were looked at and how many came true
        self._checked = self._true = 0

    def run(self, prompt: Sequence[int]) -> Generator[Chosen]:
        """Chooses tokens one by one; leaving early is fine: the sequence then holds the prompt and what was given out.

        Args:
            prompt: all of its tokens.

        Raises:
            ModelOutputError: logits that are NaN or infinite.
        """
        began = time.perf_counter()
        self.cached_tokens = self._sequence.keep_prefix_of(prompt)
        text = list(prompt)
        logits = self._sequence.extend(prompt[self.cached_tokens :], self._cancelled)
        if logits is None:
            self.finish_reason = "cancelled"
            return
        rows, draft = logits[-1:], NO_DRAFT
        try:
            while self.finish_reason is None:
                for chosen in self._choose(rows, draft, text):
                    if len(self.tokens) == 1:
                        self.prefill_seconds = time.perf_counter() - began
                    yield chosen
                if self._drafter is not None and draft.tokens:
                    self._drafter.judge(draft, self._true, checked=self._checked)
                if self.finish_reason is None:
                    # the last token's keys and values are not in the cache yet
                    self._sequence.truncate(len(text) - 1)
                    draft = self._propose(text)
                    rows = self._sequence.step([text[-1], *draft.tokens])
                    self.steps += 1
        finally:
            if not self.prefill_seconds:
                self.prefill_seconds = time.perf_counter() - began
            # Where nothing was chosen behind it, the last token is in the cache, and stays: to go back before it may
            # mean to read everything again.
            run = self.stop_token or self.finish_reason == "cancelled"
            self._sequence.truncate(min(len(self._sequence), max(len(prompt), len(text) - (not run))))

    def statistics(self) -> SpeculationStats | None:
        """What guessing did; None where nothing was guessed."""
        if self._drafter is None:
            return None
        return SpeculationStats(
            drafted=self._drafted,
            accepted=self._accepted,
            steps=self.steps,
            rechecked=self._rechecked,
            changed=self._changed,
            kernel_difference=0.0 if self._difference is None else self._difference.largest,
        )

    def _choose(self, rows: _Row, draft: Draft, text: list[int]) -> Iterator[Chosen]:
        """Chooses after each row for as long as the guesses come true, and after the last of them."""
        self._drafted += len(draft.tokens)
        self._checked, self._true = len(draft.tokens), 0
        for index in range(len(rows)):
            if self._cancelled():
                self.finish_reason = "cancelled"
                return
            row = rows[index]
            check_finite(row, len(self.tokens))
            alone = False
            if draft.tokens and self._chooser.greedy:
                row, alone = self._settled(row, text)
            token, accepted = self._next(row, draft, index)
            if token in self._stop_ids:
                self.finish_reason, self.stop_token = "stop", True
                return
            logprob = self._chooser.logprob(row, token) if self._logprobs else None
            self._chooser.accept(token)
            text.append(token)
            self.tokens.append(token)
            self._accepted += accepted
            self._true += accepted
            if alone and accepted:
                # the guesses behind it stay unchecked
                self._checked = self._true
            if self._chooser.finished:
                # the constraint leaves nothing but the end: no run is needed to learn that
                self.finish_reason = "stop"
            elif len(self.tokens) == self._room:
                self.finish_reason = "length"
            yield Chosen(token=token, logprob=logprob)
            if self.finish_reason is not None or alone or not accepted:
                return

    def _next(self, row: _Row, draft: Draft, index: int) -> tuple[int, bool]:
        """The token after a row, and whether it is the guessed one."""
        if index == len(draft.tokens):
            return self._chooser.choose(row), False
        drawn_from = None if draft.distributions is None else draft.distributions[index]
        return self._chooser.verify(row, draft.tokens[index], drawn_from)

    def _settled(self, row: _Row, text: list[int]) -> tuple[_Row, bool]:
        """The row to decide by, and whether it was run alone because several rows could not tell.

        The cache then ends with the tokens of `text`: rows behind this one are of no more use.
        """
        if self._difference is None:
            self._difference = self._known()
        if not self._difference.could_turn(self._chooser.margin(row)):
            return row, False
        several = row.copy()
        self._sequence.truncate(len(text) - 1)
        row = self._sequence.step(text[-1:])[-1]
        check_finite(row, len(self.tokens))
        self._difference.note(row, several)
        self._rechecked += 1
        self._changed += self._chooser.choose(several) != self._chooser.choose(row)
        return row, True

    def _propose(self, text: list[int]) -> Draft:
        if self._drafter is None or not self._sequence.opened.chunked:
            return NO_DRAFT
        # one run holds the last token and its guesses, each position with logits; the last guess may be the last token
        positions = self._sequence.opened.positions or 8
        room = min(positions - 1, self._room - len(self.tokens) - 1)
        # all of the run may be taken back: of window-sized caches it must not push anything out
        room = self._sequence.reversible(len(self._sequence), 1 + room) - 1
        return self._drafter.propose(text, room) if room > 0 else NO_DRAFT


def check_finite(row: _Row, position: int) -> None:
    """Refuses NaN and infinity, of which argmax silently makes token 0.

    Args:
        row: float32 [vocab_size].
        position: of the token in the answer.

    Raises:
        ModelOutputError: there are some.
    """
    if not np.isfinite(row).all():
        raise ModelOutputError(
            f"{int((~np.isfinite(row)).sum())} logits are NaN or infinite at new token {position}",
            hint="float16 overflowed: export with --residual-scale measure or with --fp32, and report the prompt.",
        )
