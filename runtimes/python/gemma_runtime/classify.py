"""Judging texts by a policy, as ShieldGemma does it: how likely the answer "Yes, it is violated" is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from gemma_runtime.decoding import check_finite
from gemma_runtime.errors import PromptError
from gemma_runtime.policies import Policy, find_policy, policy_ids
from gemma_runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gemma_runtime.manifest import Manifest
    from gemma_runtime.model import Gemma

__all__ = ["Judge", "Judgement"]

_YES, _NO = "Yes", "No"
_FAMILY = "shieldgemma-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a model says of one text and one policy."""

    # of the policy
    policy: str
    # "prompt", or "response" where a chatbot's answer was judged
    judged: str
    # "Yes" is the likelier answer
    violates: bool
    # of the two answers; they add up to 1
    probability_yes: float
    probability_no: float
    # of both among all tokens that the model could go on with: near 1 for a model that was trained to judge
    answer_mass: float
    prompt_tokens: int


class Judge:
    """Judges texts with one cache: several policies for one text read the text once. One thread at a time.

    Args:
        model: the folder.
        any_model: the folder need not be a ShieldGemma; for fine-tunes that answer the same prompt.

    Raises:
        PromptError: no ShieldGemma, or a tokenizer in which "Yes" or "No" is no token.
    """

    def __init__(self, model: Gemma, *, any_model: bool = False) -> None:
        if not any_model:
            _require_shieldgemma(model.manifest)
        self._model = model
        self._answers = _answer_tokens(model.tokenizer, model.manifest.vocab_size)
        self._sequence = model.sequence()

    def judge(self, text: str, *, policy: str | Policy, response: str | None = None) -> Judgement:
        """Whether a text violates a policy.

        Source of the score, a softmax over two logits: https://huggingface.co/google/shieldgemma-2b.

        Args:
            text: a human's.
            policy: the name of a published policy, or one's own.
            response: a chatbot's answer to the text, which is judged instead.

        Raises:
            PromptError: no such policy, a text that is empty or not valid UTF-8, or too long for the context.
            ModelOutputError: logits that are NaN or infinite.
        """
        policy = policy if isinstance(policy, Policy) else find_policy(policy)
        ids = self._model.encode(policy_ids(self._model.tokenizer, policy, text, response))
        logits = self._sequence.extend(ids[self._sequence.keep_prefix_of(ids) :])
        assert logits is not None
        check_finite(logits[-1], 0)
        # float64, and nothing to overflow
        row = logits[-1].astype(np.float64)
        weights = np.exp(row - row.max())
        answers = row[list(self._answers)]
        yes, no = (float(share) for share in np.exp(answers - np.logaddexp(*answers)))
        return Judgement(
            policy=policy.name,
            judged="prompt" if response is None else "response",
            violates=yes > no,
            probability_yes=yes,
            probability_no=no,
            answer_mass=float(weights[list(self._answers)].sum() / weights.sum()),
            prompt_tokens=len(ids),
        )


def _require_shieldgemma(manifest: Manifest) -> None:
    if not (manifest.variant or "").startswith(_FAMILY):
        raise PromptError(
            f"this folder is of variant {manifest.variant or 'none'}, which is no ShieldGemma: its Yes and No would "
            "mean nothing",
            hint="Export with --variant shieldgemma-2b; --any-model takes a fine-tune that judges by policies.",
        )


def _answer_tokens(tokenizer: Tokenizer, vocab_size: int) -> tuple[int, int]:
    tokens = []
    for answer in (_YES, _NO):
        token = tokenizer.find(answer)
        # a tokenizer may have more pieces than the model has logits
        if token is None or token >= vocab_size:
            raise PromptError(
                f"judging reads the logits of the tokens {_YES} and {_NO}; this tokenizer has no token {answer}",
                hint="Use a ShieldGemma model: gemma-export variants.",
            )
        tokens.append(token)
    yes, no = tokens
    return yes, no
