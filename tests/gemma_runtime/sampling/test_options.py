"""Sampling options: what is refused, in which words, and what is allowed."""

from __future__ import annotations

import dataclasses
import fractions
import math
from typing import Any

import numpy as np
import pytest

from gemma_runtime.errors import PromptError
from gemma_runtime.sampling import Sampling


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or above, found -0.1"),
        ({"temperature": math.nan}, "temperature must be 0 or above, found nan"),
        ({"temperature": math.inf}, "temperature must be 0 or above, found inf"),
        ({"top_k": 0}, "top-k must be 1 or above, found 0"),
        ({"top_k": -5}, "top-k must be 1 or above, found -5"),
        ({"top_p": 0.0}, "top-p must be above 0 and up to 1, found 0.0"),
        ({"top_p": -0.5}, "top-p must be above 0 and up to 1, found -0.5"),
        ({"top_p": 1.0001}, "top-p must be above 0 and up to 1, found 1.0001"),
        ({"top_p": math.nan}, "top-p must be above 0 and up to 1, found nan"),
        ({"top_k": True}, "top-k must be 1 or above, found True"),
        ({"top_k": 2.0}, "top-k must be 1 or above, found 2.0"),
        ({"top_k": "2"}, "top-k must be 1 or above, found 2"),
        ({"temperature": True}, "temperature must be 0 or above, found True"),
        ({"temperature": 10**400}, f"temperature must be 0 or above, found 1{'0' * 99}..."),
        ({"temperature": 10**5000}, "temperature must be 0 or above, found a number of thousands of digits"),
        ({"temperature": fractions.Fraction(10**400)}, f"temperature must be 0 or above, found 1{'0' * 99}..."),
        ({"top_p": 10**400}, f"top-p must be above 0 and up to 1, found 1{'0' * 99}..."),
        ({"top_k": -(10**5000)}, "top-k must be 1 or above, found a number of thousands of digits"),
        ({"repetition_penalty": 10**400}, f"repetition-penalty must be above 0, found 1{'0' * 99}..."),
        ({"presence_penalty": -(10**400)}, f"presence-penalty must be from -2 to 2, found -1{'0' * 98}..."),
        (
            {"logit_bias": {3: 10**400}},
            f"logit-bias of token 3 must be a finite number, or minus infinity for a ban, found 1{'0' * 99}...",
        ),
        ({"temperature": None}, "temperature must be 0 or above, found None"),
        ({"min_p": -0.1}, "min-p must be from 0 to 1, found -0.1"),
        ({"min_p": 1.5}, "min-p must be from 0 to 1, found 1.5"),
        ({"min_p": math.nan}, "min-p must be from 0 to 1, found nan"),
        ({"repetition_penalty": 0}, "repetition-penalty must be above 0, found 0"),
        ({"repetition_penalty": -1.0}, "repetition-penalty must be above 0, found -1.0"),
        ({"repetition_penalty": math.inf}, "repetition-penalty must be above 0, found inf"),
        ({"presence_penalty": 2.1}, "presence-penalty must be from -2 to 2, found 2.1"),
        ({"frequency_penalty": -2.1}, "frequency-penalty must be from -2 to 2, found -2.1"),
        ({"frequency_penalty": math.nan}, "frequency-penalty must be from -2 to 2, found nan"),
        ({"logit_bias": {-1: 1.0}}, "logit-bias must be of token ids, 0 or above, found -1"),
        ({"logit_bias": {"a": 1.0}}, "logit-bias must be of token ids, 0 or above, found a"),
        ({"logit_bias": {True: 1.0}}, "logit-bias must be of token ids, 0 or above, found True"),
        ({"logit_bias": [3]}, "logit-bias must be numbers by token id, found [3]"),
        (
            {"logit_bias": {3: math.nan}},
            "logit-bias of token 3 must be a finite number, or minus infinity for a ban, found nan",
        ),
        (
            {"logit_bias": {3: math.inf}},
            "logit-bias of token 3 must be a finite number, or minus infinity for a ban, found inf",
        ),
        (
            {"logit_bias": {3: "x"}},
            "logit-bias of token 3 must be a finite number, or minus infinity for a ban, found x",
        ),
        ({"seed": -1}, "seed must be 0 or above, found -1"),
        ({"seed": 1.0}, "seed must be 0 or above, found 1.0"),
        ({"seed": False}, "seed must be 0 or above, found False"),
        ({"seed": 2**63 + 1}, f"seed must be 2^63 or below, found {2**63 + 1}"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError) as caught:
        Sampling(**options)
    assert caught.value.message == message
    assert caught.value.exit_code == 2
    assert "--help" in caught.value.hint


def test_the_edges_of_the_options_are_allowed() -> None:
    sampling = Sampling(temperature=0.0, top_k=1, top_p=1.0, seed=0)
    assert dataclasses.replace(sampling, top_k=None, top_p=None) == Sampling()
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampling.seed = 1  # type: ignore[misc]


def test_numpys_numbers_are_numbers() -> None:
    options = {
        "temperature": np.float32(0.5),
        "top_k": np.int64(3),
        "seed": np.uint8(4),
        "logit_bias": {np.int32(1): 2},
    }
    assert Sampling(**options).top_k == 3


def test_all_edges_are_allowed() -> None:
    for value in (-2, 2, 0.0):
        assert Sampling(presence_penalty=value, frequency_penalty=value).presence_penalty == value
    assert Sampling(min_p=0).min_p == 0
    assert Sampling(min_p=1, repetition_penalty=5e-324, seed=2**63, logit_bias={0: -math.inf, 1: -100}).min_p == 1


def test_the_bias_is_the_callers_no_more() -> None:
    bias = {1: 2.0}
    sampling = Sampling(logit_bias=bias)
    bias[2] = math.nan
    assert sampling.logit_bias == {1: 2.0}
    # options are keys of caches
    assert hash(sampling) == hash(Sampling(logit_bias={1: 2.0}))
    assert dataclasses.asdict(sampling)["logit_bias"] == {1: 2.0}
