"""The meter: slices, chunks, flips, what it refuses."""

from __future__ import annotations

from collections.abc import Sequence

import drift_formulas as formulas
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_validation.documents import Document
from gemma_validation.findings import Drift
from gemma_validation.metrics import TAU, DriftMeter, NotFinite

_VOCABULARY = 700


def _decode(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def _logits(length: int, *, seed: int, noise: float = 0.3) -> tuple[formulas.Rows, formulas.Rows]:
    generator = np.random.default_rng(seed)
    reference = (generator.standard_normal((length, _VOCABULARY)) * 2).astype(np.float32)
    return reference, reference + (generator.standard_normal(reference.shape) * noise).astype(np.float32)


def _documents() -> list[tuple[Document, formulas.Rows, formulas.Rows]]:
    return [
        (
            formulas.document(length, vocab_size=_VOCABULARY, slice=slice, name=f"{slice} {index}", seed=index),
            *_logits(length, seed=index),
        )
        for index, (slice, length) in enumerate((("code", 40), ("prose", 30), ("code", 50), ("chat", 2)))
    ]


def _measured(documents: list[tuple[Document, formulas.Rows, formulas.Rows]]) -> DriftMeter:
    meter = DriftMeter(tau=TAU)
    for document, reference, test in documents:
        meter.add(document, 0, reference, test)
    return meter


def test_figures_are_what_the_definitions_say() -> None:
    documents = _documents()
    drifts = _measured(documents).drifts()
    assert [(drift.slice, drift.documents, drift.positions) for drift in drifts] == [
        ("all", 4, 122),
        ("code", 2, 90),
        ("prose", 1, 30),
        ("chat", 1, 2),
    ]
    for drift in drifts:
        _check(drift, [entry for entry in documents if drift.slice in ("all", entry[0].slice)])


def _check(drift: Drift, documents: list[tuple[Document, formulas.Rows, formulas.Rows]]) -> None:
    reference = np.concatenate([entry[1] for entry in documents]).astype(np.float64)
    test = np.concatenate([entry[2] for entry in documents]).astype(np.float64)
    kls = np.array([formulas.kl(*rows) for rows in zip(reference, test, strict=True)])
    for name, value in (("mean", kls.mean()), ("max", kls.max()), ("median", np.median(kls))):
        assert getattr(drift.kl, name) == pytest.approx(value)
    for name, share in (("p95", 0.95), ("p99", 0.99), ("p999", 0.999)):
        assert getattr(drift.kl, name) == pytest.approx(np.quantile(kls, share))
    # a document's last token is followed by none: its row counts for KL, not for the text's likelihood
    rows = [
        (formulas.log_softmax(first)[token], formulas.log_softmax(second)[token])
        for document, *sides in documents
        for token, first, second in zip(document.token_ids[1:], *sides, strict=False)
    ]
    likelihoods = np.array(rows)
    shifts = np.exp(likelihoods[:, 1]) - np.exp(likelihoods[:, 0])
    assert drift.probability_shift_mean == pytest.approx(np.abs(shifts).mean())
    assert drift.probability_shift_rms == pytest.approx(np.sqrt((shifts**2).mean()))
    assert drift.nll_reference == pytest.approx(-likelihoods[:, 0].mean())
    assert drift.nll_test == pytest.approx(-likelihoods[:, 1].mean())
    assert drift.perplexity_ratio == pytest.approx(np.exp((likelihoods[:, 0] - likelihoods[:, 1]).mean()))
    ordered = np.sort(reference, axis=1)
    changed = reference.argmax(1) != test.argmax(1)
    decisive = changed & (ordered[:, -1] - ordered[:, -2] > TAU)
    assert drift.top1_agreement == pytest.approx(1 - changed.mean())
    assert (drift.decisive_flips, drift.near_ties) == (decisive.sum(), changed.sum() - decisive.sum())
    overlaps = [
        len({*formulas.best(a, 10)} & {*formulas.best(b, 10)}) / 10 for a, b in zip(reference, test, strict=True)
    ]
    assert drift.top10_overlap == pytest.approx(np.mean(overlaps))
    centred = [side - side.mean(1, keepdims=True) for side in (test - reference, reference)]
    assert drift.normalised_mse == pytest.approx((centred[0] ** 2).sum() / (centred[1] ** 2).sum())
    assert drift.max_difference == pytest.approx(np.abs(test - reference).max() / reference.std())
    assert drift.kl_mean_upper >= drift.kl.mean
    assert drift.top1_disagreement_upper >= 1 - drift.top1_agreement
    for name, value in (
        ("kl_median", drift.kl.median),
        ("kl_p95", drift.kl.p95),
        ("kl_p99", drift.kl.p99),
        ("kl_p999", drift.kl.p999),
        ("decisive_flips", drift.decisive_flips / drift.positions),
        ("top10_misses", 1 - drift.top10_overlap),
        ("perplexity_ratio", drift.perplexity_ratio),
        ("probability_shift_rms", drift.probability_shift_rms),
        ("normalised_mse", drift.normalised_mse),
    ):
        # a document of two positions has a handful of events, and hardly any spread
        assert (
            value * (1 - 1e-12) <= getattr(drift, f"{name}_upper") < 2 * value + (1 if drift.positions == 2 else 0.15)
        ), name
    assert not drift.lower_bound


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_chunks_give_what_one_call_gives(chunks: list[int]) -> None:
    length = sum(chunks)
    document = formulas.document(length + 1, vocab_size=_VOCABULARY)
    reference, test = _logits(length, seed=5)
    whole, parts = DriftMeter(tau=TAU), DriftMeter(tau=TAU)
    whole.add(document, 0, reference, test)
    start = 0
    for rows in chunks:
        parts.add(document, start, reference[start : start + rows], test[start : start + rows])
        start += rows
    assert parts.drifts() == whole.drifts()
    assert parts.positions() == whole.positions()
    assert parts.flips(_decode) == whole.flips(_decode)


def test_flips_are_the_worst_decisive_ones() -> None:
    document = formulas.document(60, vocab_size=_VOCABULARY)
    reference, test = _logits(60, seed=1, noise=3.0)
    meter = DriftMeter(tau=TAU)
    meter.add(document, 0, reference, test)
    flips = meter.flips(_decode)
    ordered = np.sort(reference.astype(np.float64), axis=1)
    margins = np.where(reference.argmax(1) != test.argmax(1), ordered[:, -1] - ordered[:, -2], 0)
    assert (margins > TAU).sum() > 20 == len(flips)
    assert [flip.margin for flip in flips] == pytest.approx(sorted(margins, reverse=True)[:20])
    for flip in flips:
        row = flip.position
        assert flip.context == _decode(document.token_ids[max(0, row - 47) : row + 1])
        for shown, logits in ((flip.reference, reference[row]), (flip.test, test[row])):
            assert [alternative.token_id for alternative in shown] == formulas.best(logits, 5)
            expected = [formulas.log_softmax(logits)[alternative.token_id] for alternative in shown]
            assert [alternative.logprob for alternative in shown] == pytest.approx(expected)
            assert shown[0].text == str(shown[0].token_id)


def test_a_changed_token_within_tau_is_a_near_tie() -> None:
    reference = np.zeros((2, _VOCABULARY), np.float32)
    reference[0, 3], reference[1, 3] = 0.19, 0.21
    test = reference.copy()
    test[:, 4] = 1
    meter = DriftMeter(tau=0.2)
    meter.add(formulas.document(3, vocab_size=_VOCABULARY), 0, reference, test)
    drift = meter.drifts()[0]
    assert (drift.decisive_flips, drift.near_ties) == (1, 1)
    assert [flip.position for flip in meter.flips(_decode)] == [1]


def test_of_equal_margins_the_first_flips_are_shown() -> None:
    reference, test = np.zeros((30, 9), np.float32), np.zeros((30, 9), np.float32)
    reference[:, 1], test[:, 2] = 1, 1
    meter = DriftMeter(tau=TAU)
    meter.add(formulas.document(31, vocab_size=9), 0, reference, test)
    assert [flip.position for flip in meter.flips(_decode)] == list(range(20))


def test_charts_have_the_longest_document_of_each_slice() -> None:
    found = _measured(_documents()).positions()
    assert [(part.slice, part.document, part.first, len(part.kl)) for part in found] == [
        ("code", "code 2", 0, 50),
        ("prose", "prose 1", 0, 30),
        ("chat", "chat 3", 0, 2),
    ]
    meter = DriftMeter(tau=TAU)
    logits = np.zeros((1100, 2), np.float32)
    meter.add(formulas.document(1101, vocab_size=2), 0, logits, logits)
    assert len(meter.positions()[0].kl) == 1024


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "test"])
def test_what_is_no_number_is_found_before_any_arithmetic(side: str, value: float) -> None:
    document = formulas.document(20, vocab_size=_VOCABULARY)
    reference, test = _logits(10, seed=0)
    (reference if side == "reference" else test)[4, 699] = value
    meter = DriftMeter(tau=TAU)
    with np.errstate(all="raise"), pytest.raises(NotFinite, match="position 9 of one") as failure:
        meter.add(document, 5, reference, test)
    assert (failure.value.side, failure.value.document, failure.value.position) == (side, "one", 9)
    with pytest.raises(ValueError, match="nothing was compared"):
        meter.drifts()


def test_finite_but_huge_logits_are_compared() -> None:
    meter = DriftMeter(tau=TAU)
    reference, test = np.zeros((1, 4), np.float32), np.array([[3e38, 0, -3e38, 0]], np.float32)
    with np.errstate(over="raise", invalid="raise"):
        meter.add(formulas.document(2, vocab_size=4), 0, reference, test)
        drift = meter.drifts()[0]
    assert all(np.isfinite([drift.kl.mean, drift.perplexity_ratio, drift.normalised_mse, drift.max_difference]))


def test_refusals() -> None:
    meter = DriftMeter(tau=TAU)
    document = formulas.document(4, vocab_size=9)
    with pytest.raises(ValueError, match=r"\(2, 9\) and \(2, 8\)"):
        meter.add(document, 0, np.zeros((2, 9), np.float32), np.zeros((2, 8), np.float32))
    with pytest.raises(ValueError, match="positions 3 to 4 of one, which has 4 tokens"):
        meter.add(document, 3, np.zeros((2, 9), np.float32), np.zeros((2, 9), np.float32))
    wide, zeros = Document(slice="code", name="wide", token_ids=(0, 1, 2)), np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match="outside the vocabulary of 2"):
        meter.add(wide, 0, zeros, zeros)
    alone = Document(slice="code", name="end", token_ids=(1,))
    meter.add(alone, 0, np.zeros((1, 9), np.float32), np.ones((1, 9), np.float32))
    with pytest.raises(ValueError, match="no position of the slice 'all'"):
        meter.drifts()
