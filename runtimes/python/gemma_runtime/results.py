"""What a generation gives."""

from __future__ import annotations

import dataclasses

from gemma_runtime.sampling.logprobs import TokenLogprob

__all__ = ["Completion", "Piece", "SpeculationStats", "TokenLogprob"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeculationStats:
    """What guessing tokens ahead did."""

    # tokens that were guessed, and those of them that the model agreed with
    drafted: int
    accepted: int
    # runs of the model after the prompt
    steps: int
    # greedy decisions too close to call from a run of several tokens, made again from a run of one
    rechecked: int
    # of these, how many came out otherwise
    changed: int
    # largest difference between the logits of a run of one token and of several, seen by this answer and by the
    # measurement that it started from
    kernel_difference: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a text as it comes."""

    text: str
    # None where only held-back text is given out
    token_id: int | None
    logprob: TokenLogprob | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """What came out, and how fast."""

    text: str
    # generated tokens only, without the stop token
    token_ids: tuple[int, ...]
    # "stop": a stop token; "stop_string"; "length": as many tokens as asked for; "context": the context is full;
    # "cancelled"
    finish_reason: str
    prompt_tokens: int
    # of them, those that were in the cache already
    cached_tokens: int
    # of the rest
    prefill_tokens_per_second: float
    # of the steps after the first token; 0 where there were none
    decode_tokens_per_second: float
    # seconds until the first token was chosen
    first_token_seconds: float
    # the stop string that ended it
    stop: str | None = None
    # of each token, where asked for
    logprobs: tuple[TokenLogprob, ...] | None = None
    speculation: SpeculationStats | None = None
