"""How far runs of several tokens are off is measured once, and each answer starts from that."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_runtime import Gemma
from gemma_runtime.sequence import TokenSequence
from gemma_runtime.speculation import KernelDifference, measure_difference
from gemma_runtime.speculation.kernel_difference import _TEXT

PROMPT = "x = [1, 1, 1, 1, 1, 1, 1, 1,"


def measured(model: Gemma) -> KernelDifference:
    return measure_difference(model._opened, model.tokenizer)


def test_as_many_comparisons_as_are_believed(plain: Gemma, plain_int4: Gemma) -> None:
    exact, rounded = measured(plain), measured(plain_int4)
    assert (exact.comparisons, rounded.comparisons) == (8, 8)
    # another order of sums in float32, and nothing to expect beyond that
    assert 0 < exact.largest < 1e-4
    assert exact.expected == 0
    # a twentieth of the logits' deviation where kernels round activations
    ids, sequence = plain_int4.encode(_TEXT), plain_int4.sequence()
    sequence.extend(ids[:8])
    deviations = [float(sequence.step([token])[-1].std()) for token in ids[8:16]]
    assert rounded.expected == pytest.approx(0.05 * max(deviations), rel=1e-4)
    assert measured(plain_int4) == rounded


def test_two_logits_may_each_be_off() -> None:
    difference = KernelDifference(comparisons=7)
    one, several = np.zeros(4, np.float32), np.array([0, 0.25, 0, -0.125], np.float32)
    assert difference.could_turn(100.0)
    difference.note(one, several)
    assert (difference.largest, difference.comparisons) == (0.25, 8)
    assert difference.could_turn(0.5)
    assert not difference.could_turn(0.51)
    difference.note(one, one)
    assert difference.largest == 0.25


def test_the_least_to_reckon_with_is_a_share_of_the_deviation() -> None:
    difference = KernelDifference(turned_tie=0.05, comparisons=8)
    row = np.array([-10, 10, -10, 10], np.float32)
    difference.note(row, row)
    assert difference.could_turn(0.5)
    assert not difference.could_turn(0.51)


@pytest.mark.parametrize(("context", "comparisons"), [(24, 8), (12, 4), (9, 0), (8, 0), (1, 0)])
def test_a_context_too_short_leaves_comparisons_to_the_answers(
    context: int, comparisons: int, plain: Gemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain._opened, "context_length", context)
    difference = measured(plain)
    assert difference.comparisons == comparisons
    assert difference.could_turn(100.0) == (comparisons < 8)


def test_logits_that_are_no_numbers_say_nothing(plain: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    step = TokenSequence.step

    def overflowing(sequence: TokenSequence, ids: Sequence[int]) -> np.ndarray:
        rows = step(sequence, ids).copy()
        rows[0, 5] = np.nan
        return rows

    monkeypatch.setattr(TokenSequence, "step", overflowing)
    difference = measured(plain)
    assert (difference.comparisons, difference.largest) == (0, 0.0)


def test_measured_once_and_only_where_something_is_guessed(tiny_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[int] = []

    def counted(*arguments: Any) -> KernelDifference:
        times.append(1)
        return measure_difference(*arguments)

    monkeypatch.setattr("gemma_runtime.speculation.measure_difference", counted)
    model = Gemma(tiny_fp32, threads=1)
    # nothing repeats yet
    model.generate("a", max_new_tokens=1)
    assert times == []
    threads = [threading.Thread(target=model.generate, args=(PROMPT,), kwargs={"max_new_tokens": 12}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert times == [1]


def test_what_an_answer_meets_stays_its_own(tiny_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Gemma(tiny_fp32, threads=1)
    before = model._kernel_difference()
    monkeypatch.setattr(KernelDifference, "could_turn", lambda self, margin: True)
    answer = model.generate(PROMPT, max_new_tokens=20)
    assert answer.speculation is not None
    assert answer.speculation.rechecked > 0
    assert answer.speculation.kernel_difference >= before.largest
    assert model._kernel_difference() == before
