"""Log-probabilities are the model's own, whatever the options."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemma_runtime.sampling import Sampling, TokenChooser


@pytest.mark.parametrize("size", [40, 20_000])
def test_logprobs_are_torchs(size: int) -> None:
    logits = (4 * np.random.default_rng(size).normal(size=size)).astype(np.float32)
    expected = torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
    sampling = Sampling(temperature=0.3, top_k=2, repetition_penalty=1.5, logit_bias={4: -np.inf})
    chooser = TokenChooser(sampling, vocab_size=size, prompt_ids=[1, 2], allowed_size=size - 5, logprobs=6)
    top = expected.topk(6)
    for token in (0, 4, size - 1):
        found = chooser.logprob(logits, token)
        assert found.token == token
        assert found.logprob == pytest.approx(float(expected[token]), abs=1e-12)
        assert [other for other, _ in found.alternatives] == top.indices.tolist()
        assert [logprob for _, logprob in found.alternatives] == pytest.approx(top.values.tolist(), abs=1e-12)
        assert type(found.alternatives[0][0]) is int


@pytest.mark.parametrize("count", [None, 0, 3])
def test_as_many_alternatives_as_asked_for(count: int | None) -> None:
    logits = np.array([1, 5, 5, -np.inf], np.float32)
    chooser = TokenChooser(Sampling(), vocab_size=4, prompt_ids=[], logprobs=count)
    found = chooser.logprob(logits, 3)
    assert found.logprob == -np.inf
    # equal ones by the smaller id
    assert [token for token, _ in found.alternatives] == [1, 2, 0][: count or 0]
