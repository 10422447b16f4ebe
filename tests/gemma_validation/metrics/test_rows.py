"""Every figure of a position against its definition."""

from __future__ import annotations

import drift_formulas as formulas
import numpy as np
import pytest
from hypothesis import given, settings

from gemma_validation.metrics.rows import PairComparer
from gemma_validation.metrics.top import top_tokens


@settings(max_examples=60, deadline=None)
@given(formulas.pairs())
def test_positions_are_what_the_definitions_say(pair: tuple[formulas.Rows, formulas.Rows]) -> None:
    reference, test = pair
    count, vocab_size = reference.shape
    following = np.arange(count) % (vocab_size + 1) - 1
    found = PairComparer(vocab_size).compare(reference, test, positions=np.arange(7, 7 + count), next_tokens=following)
    assert found["position"].tolist() == list(range(7, 7 + count))
    for row in range(count):
        first, second = (formulas.log_softmax(side[row]) for side in pair)
        assert found["kl"][row] == pytest.approx(formulas.kl(reference[row], test[row]), rel=1e-9, abs=1e-12)
        tops = formulas.best(reference[row], 10), formulas.best(test[row], 10)
        assert found["same_top1"][row] == (tops[0][0] == tops[1][0])
        assert found["overlap"][row] == pytest.approx(len({*tops[0]} & {*tops[1]}) / len(tops[0]))
        assert found["margin"][row] == pytest.approx(first[tops[0][0]] - first[tops[0][1]], abs=1e-12)
        wide = reference[row].astype(np.float64), test[row].astype(np.float64)
        scale = {"rel": 1e-9, "abs": 1e-9}
        assert found["squared_reference"][row] == pytest.approx(formulas.centred_squares(wide[0]), **scale)
        assert found["squared_difference"][row] == pytest.approx(formulas.centred_squares(wide[1] - wide[0]), **scale)
        assert found["largest"][row] == pytest.approx(np.abs(wide[1] - wide[0]).max(), **scale)
        assert found["mean_reference"][row] == pytest.approx(wide[0].mean(), **scale)
        token = following[row]
        if token < 0:
            assert np.isnan([found[name][row] for name in ("shift", "logprob_reference", "logprob_test")]).all()
        else:
            assert found["logprob_reference"][row] == pytest.approx(first[token], **scale)
            assert found["logprob_test"][row] == pytest.approx(second[token], **scale)
            assert found["shift"][row] == pytest.approx(np.exp(second[token]) - np.exp(first[token]), **scale)


@settings(max_examples=60, deadline=None)
@given(formulas.pairs())
def test_top_tokens_are_those_of_a_full_sort(pair: tuple[formulas.Rows, formulas.Rows]) -> None:
    for count in (1, 10, 256):
        expected = [formulas.best(row, count) for row in pair[0]]
        assert top_tokens(pair[0], count).tolist() == expected


def test_ties_across_blocks_go_to_the_smaller_id() -> None:
    """Fifteen equal tokens, one in each of fifteen blocks; three larger ones and an equal one in a later block."""
    row = np.zeros((1, 2000), np.float32)
    row[0, 64 * np.arange(1, 16) + 5] = 1
    row[0, [1922, 1925, 1928]] = 2
    row[0, 1921] = 1
    assert top_tokens(row, 10)[0].tolist() == [1922, 1925, 1928, *(64 * block + 5 for block in range(1, 8))]


def test_blocks_of_rows_are_as_one_row_at_a_time() -> None:
    """300 rows of 3,000 tokens are several blocks of the workspace, the last one short."""
    generator = np.random.default_rng(0)
    reference = generator.standard_normal((300, 3000)).astype(np.float32)
    test = reference + generator.standard_normal((300, 3000)).astype(np.float32)
    following = generator.integers(0, 3000, 300)
    together = PairComparer(3000).compare(reference, test, positions=np.arange(300), next_tokens=following)
    for row in (0, 42, 43, 44, 128, 299):
        part = slice(row, row + 1)
        alone = PairComparer(3000).compare(
            reference[part], test[part], positions=np.arange(row, row + 1), next_tokens=following[part]
        )
        assert together[row] == alone[0]


def test_the_smallest_drift_is_not_lost() -> None:
    """One logit off by 1e-6: KL is 0.5 p (1 - p) 1e-12, far below what float32 arithmetic resolves."""
    reference = np.array([[1.0, 0.5, 0.0, -3.0]])
    probability = float(np.exp(formulas.log_softmax(reference[0])[1]))
    test = reference + np.array([[0.0, 1e-6, 0.0, 0.0]])
    found = PairComparer(4).compare(reference, test, positions=np.arange(1), next_tokens=np.array([-1]))
    assert found["kl"][0] == pytest.approx(0.5e-12 * probability * (1 - probability), rel=1e-2)
