"""One answer: tokens of the loop as text, stop strings and all that a user is told of it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict

from gemma_runtime.answer_text import AnswerText
from gemma_runtime.decoding import Decoding
from gemma_runtime.errors import PromptError
from gemma_runtime.results import Completion, Piece
from gemma_runtime.sampling import Sampling, TokenChooser
from gemma_runtime.sampling.options import is_integer, require
from gemma_runtime.stop_text import StopText
from gemma_runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gemma_runtime.constraints import Constraint
    from gemma_runtime.sequence import TokenSequence
    from gemma_runtime.speculation import Drafter, KernelDifference

__all__ = ["Answer", "AnswerKeywords", "AnswerOptions"]

# more alternatives than any reader wants, and few enough to sort each step
_MOST_LOGPROBS = 100
# what tells a right object from a wrong one
_METHODS = {"sampling": "generator", "constraint": "matcher", "cancel": "is_set"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How an answer is generated.

    Raises:
        PromptError: a value outside its range.
    """

    max_new_tokens: int = 128
    # stop tokens are not chosen before
    min_new_tokens: int = 0
    # None is greedy
    sampling: Sampling | None = None
    # texts that end the answer and are not part of it
    stop: str | Sequence[str] = ()
    # tokens that end the answer besides the folder's
    stop_ids: Collection[int] = ()
    # log probabilities: None for none, otherwise the number of alternatives of each token
    logprobs: int | None = None
    # what the answer must look like
    constraint: Constraint | None = None
    # ends the answer once it is set
    cancel: threading.Event | None = None

    def __post_init__(self) -> None:
        # kept as they are now: an iterator could be gone through only once
        require(isinstance(self.stop, Iterable), "stop", "strings", self.stop)
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        require(isinstance(self.stop_ids, Iterable), "stop-ids", "token ids", self.stop_ids)
        stop_ids = tuple(self.stop_ids)
        for token in stop_ids:
            require(is_integer(token), "stop-ids", "token ids", token)
        object.__setattr__(self, "stop_ids", frozenset(stop_ids))
        # refuses what could never be found, before a model is opened
        StopText(self.stops)
        for name in ("sampling", "constraint", "cancel"):
            value, method = getattr(self, name), _METHODS[name]
            require(value is None or hasattr(value, method), name, f"an object with {method}()", value)
        require(
            is_integer(self.max_new_tokens) and self.max_new_tokens >= 1,
            "max-new-tokens",
            "1 or above",
            self.max_new_tokens,
        )
        require(
            is_integer(self.min_new_tokens) and 0 <= self.min_new_tokens <= self.max_new_tokens,
            "min-new-tokens",
            f"from 0 to max-new-tokens ({self.max_new_tokens})",
            self.min_new_tokens,
        )
        require(
            self.logprobs is None or (is_integer(self.logprobs) and 0 <= self.logprobs <= _MOST_LOGPROBS),
            "logprobs",
            f"from 0 to {_MOST_LOGPROBS}",
            self.logprobs,
        )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, one or several."""
        return tuple(self.stop)

    def room(self, prompt_tokens: int, context_length: int) -> tuple[int, str]:
        """Tokens at most, and the reason for ending there."""
        # the last token of a full context needs no slot: nothing attends to it
        left = context_length - prompt_tokens + 1
        return (self.max_new_tokens, "length") if self.max_new_tokens <= left else (left, "context")

    def all_stop_ids(self, stop_ids: frozenset[int]) -> frozenset[int]:
        """The folder's and the caller's."""
        return stop_ids | frozenset(self.stop_ids)

    def chooser(
        self, prompt: Sequence[int], tokenizer: Tokenizer, stop_ids: frozenset[int], vocab_size: int
    ) -> TokenChooser:
        """What chooses the tokens of one answer.

        Args:
            prompt: its tokens.
            tokenizer: of the folder: what it has no piece for never comes, nor what is no text.
            stop_ids: of the folder.
            vocab_size: logits of a row.
        """
        ends = self.all_stop_ids(stop_ids)
        for token in ends:
            require(is_integer(token) and 0 <= token < vocab_size, "stop-ids", f"ids from 0 to {vocab_size - 1}", token)
        return TokenChooser(
            self.sampling or Sampling(),
            vocab_size=vocab_size,
            prompt_ids=prompt,
            stop_ids=ends,
            min_new_tokens=self.min_new_tokens,
            allowed_size=tokenizer.size,
            banned=tokenizer.never_chosen,
            constraint=None if self.constraint is None else self.constraint.matcher(tokenizer, sorted(ends)),
            logprobs=self.logprobs,
        )


class AnswerKeywords(TypedDict, total=False):
    """Keywords of `generate` and its like: the fields of AnswerOptions, which says what each means."""

    max_new_tokens: int
    min_new_tokens: int
    sampling: Sampling | None
    stop: str | Sequence[str]
    stop_ids: Collection[int]
    logprobs: int | None
    constraint: Constraint | None
    cancel: threading.Event | None


class Answer:
    """One answer in the making, by `Gemma.answer` or `Conversation.answer`.

    Args:
        sequence: of the conversation.
        prompt: its tokens.
        options: how to generate.
        tokenizer: of the folder.
        stop_ids: of the folder.
        drafter: guesses ahead, or None.
        difference: see Decoding.
        busy: held while it runs: a conversation gives one answer at a time.
    """

    def __init__(
        self,
        sequence: TokenSequence,
        prompt: list[int],
        options: AnswerOptions,
        *,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        drafter: Drafter | None,
        difference: Callable[[], KernelDifference],
        busy: threading.Lock,
    ) -> None:
        self._prompt, self._busy = prompt, busy
        self._text = AnswerText(tokenizer, options.stops, logprobs=options.logprobs is not None)
        room, self._full = options.room(len(prompt), sequence.opened.context_length)
        self._decoding = Decoding(
            sequence,
            options.chooser(prompt, tokenizer, stop_ids, sequence.opened.vocab_size),
            stop_ids=options.all_stop_ids(stop_ids),
            room=room,
            drafter=drafter,
            difference=difference,
            cancel=options.cancel,
            logprobs=options.logprobs is not None,
        )
        self._completion: Completion | None = None

    @property
    def completion(self) -> Completion:
        """The whole, once `pieces` has been gone through or left."""
        if self._completion is None:
            raise PromptError("the answer has not been given yet", hint="Go through pieces(), or call finish().")
        return self._completion

    def finish(self) -> Completion:
        """Runs to the end."""
        for _ in self.pieces():
            pass
        return self.completion

    def pieces(self) -> Iterator[Piece]:
        """The text as it comes; the pieces join to the completion's text.

        Raises:
            PromptError: the conversation is giving another answer, or no token is left to choose from.
            ModelOutputError: logits that are NaN or infinite.
        """
        if self._completion is not None:
            raise PromptError("this answer has been given", hint="Ask for another: model.answer(...).")
        if not self._busy.acquire(blocking=False):
            raise PromptError(
                "this conversation is giving another answer",
                hint="Take a conversation for each thread: model.conversation().",
            )
        began = time.perf_counter()
        steps = self._decoding.run(self._prompt)
        reason = "cancelled"
        try:
            for chosen in steps:
                yield self._text.push(chosen.token, chosen.logprob)
                if self._text.stopped:
                    break
            reason = self._decoding.finish_reason or reason
            rest = self._text.flush()
            if rest is not None:
                yield rest
        finally:
            steps.close()
            # what was held back when the answer is left early
            self._text.flush()
            self._completion = self._text.complete(
                {"length": self._full}.get(reason, reason),
                stop_token=self._decoding.stop_token,
                tokens=self._decoding.tokens,
                prompt_tokens=len(self._prompt),
                cached_tokens=self._decoding.cached_tokens,
                first_token_seconds=self._decoding.prefill_seconds,
                seconds=time.perf_counter() - began,
                speculation=self._decoding.statistics(),
            )
            self._busy.release()
