"""Tokens of an answer as text, stop strings and log probabilities, and the completion that they make."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_runtime.results import Completion, Piece, SpeculationStats, TokenLogprob
from gemma_runtime.stop_text import StopText
from gemma_runtime.tokenizer import StreamDecoder, Tokenizer

__all__ = ["AnswerText"]


class AnswerText:
    """What one answer says so far.

    Args:
        tokenizer: of the folder.
        stops: strings that end it.
        logprobs: whether tokens come with log probabilities.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], *, logprobs: bool) -> None:
        self._decoder, self._stops = StreamDecoder(tokenizer), StopText(stops)
        self._logprobs: list[TokenLogprob] | None = [] if logprobs else None
        self._parts: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found."""
        return self._stops.found is not None

    def push(self, token: int, logprob: TokenLogprob | None) -> Piece:
        """What one more token adds."""
        if self._logprobs is not None and logprob is not None:
            self._logprobs.append(logprob)
        text = self._stops.push(self._decoder.push(token))
        self._parts.append(text)
        return Piece(text=text, token_id=token, logprob=logprob)

    def flush(self) -> Piece | None:
        """What was held back until the end: a character that never got its last byte, half a stop string."""
        text = self._stops.push(self._decoder.flush()) + self._stops.flush()
        self._parts.append(text)
        return Piece(text=text, token_id=None) if text else None

    def complete(
        self,
        reason: str,
        *,
        stop_token: bool,
        tokens: Sequence[int],
        prompt_tokens: int,
        cached_tokens: int,
        first_token_seconds: float,
        seconds: float,
        speculation: SpeculationStats | None = None,
    ) -> Completion:
        """The whole.

        Args:
            reason: see Completion; a stop string that was found is a reason of its own.
            stop_token: whether a run chose one, which is not among the tokens.
            tokens: of the answer.
            prompt_tokens, cached_tokens: see Completion.
            first_token_seconds: until the first token was chosen.
            seconds: until the end.
            speculation: what guessing did.
        """
        decoded = seconds - first_token_seconds
        made = len(tokens) - (not stop_token)
        read = prompt_tokens - cached_tokens
        return Completion(
            text="".join(self._parts),
            token_ids=tuple(tokens),
            finish_reason="stop_string" if self.stopped else reason,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            prefill_tokens_per_second=read / first_token_seconds if first_token_seconds > 0 else 0.0,
            decode_tokens_per_second=made / decoded if made > 0 and decoded > 0 else 0.0,
            first_token_seconds=first_token_seconds,
            stop=self._stops.found,
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
            speculation=speculation,
        )
