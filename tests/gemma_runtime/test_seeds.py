"""One seed, one text: whatever is guessed ahead, and however long the guesses took."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemma_runtime import Gemma, Sampling
from gemma_runtime.speculation import DraftLength

# repeats itself, so that guesses come true
PROMPT = "def read(path):\n    with open(path) as file:\n        return file.read()\n\n\n" * 3


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_a_seed_gives_the_text_of_plain_decoding(
    temperature: float, tiny_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_new_tokens": 60, "min_new_tokens": 60, "sampling": Sampling(temperature=temperature, seed=3)}
    plain = Gemma(tiny_fp32, speculation="off").generate(PROMPT, **options)
    model = Gemma(tiny_fp32)
    for start in (1, 2, 3):
        # how many guesses pay is a matter of the clock: here it changes at every step
        lengths: Iterator[int] = itertools.cycle([start, 7, 0, 3, 1, 5])
        monkeypatch.setattr(DraftLength, "best", lambda self, kind, most, lengths=lengths: min(next(lengths), most))
        guessed = model.generate(PROMPT, **options)
        assert guessed.speculation is not None
        assert guessed.speculation.accepted > 0
        assert guessed.speculation.accepted < guessed.speculation.drafted
        assert guessed.token_ids == plain.token_ids
