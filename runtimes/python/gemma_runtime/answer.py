"""One answer: tokens of the loop as text, stop strings and all that a user is told of it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gemma_runtime.decoding import Decoding
from gemma_runtime.errors import PromptError
from gemma_runtime.results import Completion, Piece, TokenLogprob
from gemma_runtime.sampling import Sampling, TokenChooser
from gemma_runtime.stop_text import StopText
from gemma_runtime.tokenizer import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from gemma_runtime.constraints import Constraint
    from gemma_runtime.sequence import TokenSequence
    from gemma_runtime.speculation import Drafter

__all__ = ["Answer", "AnswerOptions"]

# more alternatives than any reader wants, and few enough to sort each step
_MOST_LOGPROBS = 100


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
    # log probabilities: None for none, otherwise the number of alternatives of each token
    logprobs: int | None = None
    # what the answer must look like
    constraint: Constraint | None = None
    # ends the answer once it is set
    cancel: threading.Event | None = None

    def __post_init__(self) -> None:
        _require(
            _whole(self.max_new_tokens) and self.max_new_tokens >= 1,
            "max-new-tokens",
            "1 or above",
            self.max_new_tokens,
        )
        _require(
            _whole(self.min_new_tokens) and 0 <= self.min_new_tokens <= self.max_new_tokens,
            "min-new-tokens",
            f"from 0 to max-new-tokens ({self.max_new_tokens})",
            self.min_new_tokens,
        )
        _require(
            self.logprobs is None or (_whole(self.logprobs) and 0 <= self.logprobs <= _MOST_LOGPROBS),
            "logprobs",
            f"from 0 to {_MOST_LOGPROBS}",
            self.logprobs,
        )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, one or several."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def chooser(self, vocab_size: int, prompt: Sequence[int], stop_ids: frozenset[int], **more: Any) -> TokenChooser:
        """What chooses the tokens of one answer."""
        return TokenChooser(
            self.sampling or Sampling(),
            vocab_size=vocab_size,
            prompt_ids=prompt,
            stop_ids=stop_ids,
            min_new_tokens=self.min_new_tokens,
            logprobs=self.logprobs,
            **more,
        )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(holds: bool, name: str, expected: str, found: object) -> None:
    if not holds:
        raise PromptError(f"{name} must be {expected}, found {found}", hint="See gemma-run --help.")


class Answer:
    """One answer in the making, by `Gemma.answer` or `Conversation.answer`.

    Args:
        sequence: of the conversation.
        prompt: its tokens.
        options: how to generate.
        tokenizer: of the folder.
        stop_ids: of the folder.
        room: tokens at most, the context's end counted in.
        drafter: guesses ahead, or None.
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
        room: int,
        drafter: Drafter | None,
        busy: threading.Lock,
    ) -> None:
        self._prompt, self._options, self._busy = prompt, options, busy
        self._stops, self._decoder = StopText(options.stops), StreamDecoder(tokenizer)
        constraint = None if options.constraint is None else options.constraint.matcher(tokenizer, sorted(stop_ids))
        chooser = options.chooser(
            sequence.opened.vocab_size, prompt, stop_ids, allowed_size=tokenizer.size, constraint=constraint
        )
        self._decoding = Decoding(
            sequence,
            chooser,
            stop_ids=stop_ids,
            room=room,
            drafter=drafter,
            cancel=options.cancel,
            logprobs=options.logprobs is not None,
        )
        self._full = "length" if room == options.max_new_tokens else "context"
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._seconds = 0.0
        self._completion: Completion | None = None

    @property
    def completion(self) -> Completion:
        """The whole, once `pieces` has been gone through or left."""
        assert self._completion is not None, "ask for it after pieces()"
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
                if chosen.logprob is not None:
                    self._logprobs.append(chosen.logprob)
                shown = self._stops.push(self._decoder.push(chosen.token))
                yield self._piece(shown, chosen.token, chosen.logprob)
                if self._stops.found is not None:
                    break
            reason = "stop_string" if self._stops.found is not None else self._decoding.finish_reason or "cancelled"
            rest = self._stops.push(self._decoder.flush()) + self._stops.flush()
            if rest:
                yield self._piece(rest, None, None)
        finally:
            steps.close()
            self._seconds = time.perf_counter() - began
            self._completion = self._complete({"length": self._full}.get(reason, reason))
            self._busy.release()

    def _piece(self, text: str, token: int | None, logprob: TokenLogprob | None) -> Piece:
        self._text.append(text)
        return Piece(text=text, token_id=token, logprob=logprob)

    def _complete(self, reason: str) -> Completion:
        decoding = self._decoding
        read = len(self._prompt) - decoding.cached_tokens
        decoded = self._seconds - decoding.prefill_seconds
        # the last run gives no token where a stop token ends the text
        made = len(decoding.tokens) - (reason != "stop")
        return Completion(
            text="".join(self._text),
            token_ids=tuple(decoding.tokens),
            finish_reason=reason,
            prompt_tokens=len(self._prompt),
            cached_tokens=decoding.cached_tokens,
            prefill_tokens_per_second=read / decoding.prefill_seconds if decoding.prefill_seconds else 0.0,
            decode_tokens_per_second=made / decoded if made > 0 and decoded > 0 else 0.0,
            first_token_seconds=decoding.prefill_seconds,
            stop=self._stops.found,
            logprobs=tuple(self._logprobs) if self._options.logprobs is not None else None,
            speculation=decoding.statistics(),
        )
