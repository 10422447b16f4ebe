"""Every option of an answer means the same with and without guesses."""

from __future__ import annotations

import math
from typing import Any

import pytest
from code_prompts import prompts

from gemma_runtime import Constraint, Gemma, Sampling

PROMPTS = prompts(15, seed=2)
SCHEMA = {
    "type": "object",
    "properties": {
        "names": {"type": "array", "items": {"type": "string", "maxLength": 6}, "minItems": 2, "maxItems": 4},
    },
    "required": ["names"],
    "additionalProperties": False,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "stop strings": {"stop": ("\n\n", ".ap", "self")},
    "stop token of the caller": {"stop_ids": (108, 235, 300)},
    "min_new_tokens": {"min_new_tokens": 30},
    "repetition penalty": {"sampling": Sampling(repetition_penalty=1.3)},
    "presence and frequency": {"sampling": Sampling(presence_penalty=1.0, frequency_penalty=0.5)},
    "logit bias": {"sampling": Sampling(logit_bias={300: 4.0, 301: -math.inf, 400: 5.0})},
    "schema": {"constraint": Constraint.json_schema(SCHEMA)},
    "logprobs": {"logprobs": 3},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_same_answer(name: str, plain: Gemma, looking_up: Gemma) -> None:
    options = {"max_new_tokens": 32} | OPTIONS[name]
    accepted = differs = 0
    for prompt in PROMPTS:
        expected, found = plain.generate(prompt, **options), looking_up.generate(prompt, **options)
        assert (found.text, found.token_ids) == (expected.text, expected.token_ids)
        assert (found.finish_reason, found.stop) == (expected.finish_reason, expected.stop)
        assert found.speculation is not None
        accepted += found.speculation.accepted
        differs += expected.token_ids != plain.generate(prompt, max_new_tokens=32).token_ids
        if expected.logprobs is not None:
            assert found.logprobs is not None
            assert [each.token for each in found.logprobs] == list(found.token_ids)
            for one, other in zip(expected.logprobs, found.logprobs, strict=True):
                assert other.logprob == pytest.approx(one.logprob, abs=1e-4)
                assert [token for token, _ in other.alternatives] == [token for token, _ in one.alternatives]
    assert accepted > 5
    # the option means something in some answers
    assert differs or name == "logprobs"


def test_pieces_join_to_the_text_and_stop_where_it_stops(plain: Gemma, looking_up: Gemma) -> None:
    """Tokens that the last run also agreed with, behind a stop string, are neither given out nor kept."""
    prompt = "x = [1, 1, 1, 1, 1, 1, 1, 1,"
    expected = plain.generate(prompt, max_new_tokens=30)
    stop = expected.text[len(expected.text) // 2 :][:3]
    conversation = looking_up.conversation()
    pieces = list(conversation.stream(prompt, max_new_tokens=30, stop=stop))
    assert "".join(piece.text for piece in pieces) == expected.text[: expected.text.index(stop)]
    tokens = [piece.token_id for piece in pieces if piece.token_id is not None]
    assert conversation.tokens == (*plain.encode(prompt), *tokens[:-1])
