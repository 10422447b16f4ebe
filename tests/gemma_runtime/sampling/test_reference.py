"""Every option, and random combinations of them, against transformers' own processors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tolerances import SAMPLING_PROBABILITY
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gemma_runtime.sampling import Distribution, Sampling, TokenChooser

Logits = npt.NDArray[np.float32]
# the second is past the size up to which everything is done at once in float64
SIZES = [97, 20_000]
STOPS = frozenset({1, 7})


def reference(
    logits: Logits, options: dict[str, Any], prompt: list[int], answer: list[int], min_new_tokens: int = 0
) -> npt.NDArray[np.float64]:
    """Probabilities [vocab_size] by transformers, in the order of its `_get_logits_processor`."""
    processors = LogitsProcessorList()
    bias = {(token,): value for token, value in options.get("logit_bias", {}).items() if value != -math.inf}
    bans = [token for token, value in options.get("logit_bias", {}).items() if value == -math.inf]
    allowed = [token for token in range(len(logits)) if token not in bans]
    if bias:
        processors.append(SequenceBiasLogitsProcessor(bias))
    if "repetition_penalty" in options:
        processors.append(RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    processors.append(_Presence(len(prompt), options))
    if min_new_tokens:
        processors.append(MinNewTokensLengthLogitsProcessor(len(prompt), min_new_tokens, torch.tensor(sorted(STOPS))))
    if bans:
        processors.append(PrefixConstrainedLogitsProcessor(lambda _, __: allowed, 1))
    for name, warper in (
        ("temperature", TemperatureLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
        ("min_p", MinPLogitsWarper),
    ):
        if name in options:
            processors.append(warper(options[name]))
    scores = processors(torch.tensor([prompt + answer]), torch.tensor(logits[None], dtype=torch.float64))
    return scores.softmax(-1)[0].numpy()


class _Presence:
    """OpenAI's formula (https://platform.openai.com/docs/guides/advanced-usage): transformers has no such processor."""

    def __init__(self, prompt_length: int, options: dict[str, Any]) -> None:
        self.prompt_length = prompt_length
        self.presence = options.get("presence_penalty", 0.0)
        self.frequency = options.get("frequency_penalty", 0.0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(input_ids[0, self.prompt_length :], minlength=scores.shape[-1])
        return scores - counts * self.frequency - (counts > 0) * self.presence


def ours(
    logits: Logits, options: dict[str, Any], prompt: list[int], answer: list[int], min_new_tokens: int = 0
) -> Distribution:
    chooser = TokenChooser(
        Sampling(**options),
        vocab_size=len(logits),
        prompt_ids=prompt,
        stop_ids=STOPS,
        min_new_tokens=min_new_tokens,
    )
    for token in answer:
        chooser.accept(token)
    return chooser.distribution(logits)


def assert_equal(found: Distribution, expected: npt.NDArray[np.float64], temperature: float = 1.0) -> None:
    # what is 40 temperatures below the best is left out here
    np.testing.assert_array_equal(found.ids, np.flatnonzero(expected > math.exp(-40) * expected.max()))
    limit = SAMPLING_PROBABILITY / min(temperature, 1)
    np.testing.assert_allclose(found.probabilities, expected[found.ids], rtol=0, atol=limit)
    assert found.probabilities.sum() == pytest.approx(1, abs=1e-12)


def case(size: int, seed: int) -> tuple[Logits, list[int], list[int]]:
    random = np.random.default_rng(seed)
    logits = (random.normal(size=size) * random.choice([0.5, 3, 8])).astype(np.float32)
    # penalties matter where the model likes the token
    likely = np.argsort(-logits)[:20]
    prompt = [*random.integers(0, size, 15).tolist(), *random.choice(likely, 4).tolist()]
    answer = [*random.integers(0, size, 8).tolist(), *random.choice(likely, 8).tolist()]
    return logits, prompt, answer


VALUES: dict[str, list[Any]] = {
    "temperature": [0.05, 0.3, 1.0, 1.7, 40.0],
    "top_k": [1, 2, 13, 60, 3000],
    "top_p": [1e-6, 0.2, 0.9, 0.999],
    "min_p": [0.0, 0.001, 0.05, 0.5, 1.0],
    "repetition_penalty": [0.5, 1.1, 1.8],
    "presence_penalty": [-2.0, 0.7, 2.0],
    "frequency_penalty": [-1.5, 0.4, 2.0],
    "logit_bias": [
        {3: 4.5, 11: -100.0, 50: 2.0},
        {0: -math.inf, 1: -math.inf, 96: 12.0},
    ],
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in VALUES.items() for value in values])
def test_one_option(name: str, value: Any, size: int) -> None:
    options = {"temperature": 1.0} | {name: value}
    for seed in range(4):
        logits, prompt, answer = case(size, seed)
        assert_equal(
            ours(logits, options, prompt, answer), reference(logits, options, prompt, answer), options["temperature"]
        )


@pytest.mark.parametrize("size", SIZES)
def test_random_combinations(size: int) -> None:
    random = np.random.default_rng(size)
    for seed in range(150):
        logits, prompt, answer = case(size, seed)
        options: dict[str, Any] = {"temperature": 1.0}
        for name, values in VALUES.items():
            if random.random() < 0.5:
                options[name] = values[random.integers(len(values))]
        least = int(random.choice([0, len(answer), len(answer) + 1]))
        expected = reference(logits, options, prompt, answer, least)
        found = ours(logits, options, prompt, answer, least)
        assert_equal(found, expected, options["temperature"])
        # greedy takes the best of the same
        chooser = TokenChooser(
            Sampling(**options | {"temperature": 0.0}),
            vocab_size=size,
            prompt_ids=prompt,
            stop_ids=STOPS,
            min_new_tokens=least,
        )
        for token in answer:
            chooser.accept(token)
        assert chooser.choose(logits) == int(expected.argmax())


def test_stop_tokens_wait_for_the_least_length() -> None:
    logits, prompt, answer = case(97, 0)
    logits[sorted(STOPS)] = logits.max() + 1
    for least in (len(answer), len(answer) + 1):
        found = ours(logits, {"temperature": 1.0}, prompt, answer, least)
        assert_equal(found, reference(logits, {"temperature": 1.0}, prompt, answer, least))
        assert STOPS.issubset(found.ids.tolist()) == (least == len(answer))
