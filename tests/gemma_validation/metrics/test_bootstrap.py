"""Intervals: as wide as they should be, and wider where positions say the same."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_runtime.tokenizer import load_tokenizer
from gemma_validation.metrics.bootstrap import Bootstrap, blocks_of
from gemma_validation.texts import documents_for

_TOKENIZER = load_tokenizer(BUILTIN_DIRECTORY)


def _over(*lengths: int) -> Bootstrap:
    return Bootstrap(blocks_of(lengths))


def test_documents_are_blocks_and_one_that_is_much_longer_is_cut() -> None:
    assert np.bincount(blocks_of([10] * 25)).tolist() == [10] * 25
    assert np.bincount(blocks_of([640, *[32] * 20])).tolist() == [32] * 40
    # as long as the others are, not as short as parts may be
    assert np.bincount(blocks_of([*[100] * 15, 140, 1000, *[100] * 10])).tolist() == [
        *[100] * 15,
        140,
        *[100] * 10,
        *[100] * 10,
    ]
    assert np.bincount(blocks_of([0, 3, 0])).tolist() == [3]
    assert blocks_of([]).tolist() == []


def test_few_documents_are_all_cut() -> None:
    """To about 32 positions, or as soon as twenty blocks are there."""
    assert np.bincount(blocks_of([100, 64, 5])).tolist() == [33, 33, 34, 32, 32, 5]
    assert np.bincount(blocks_of([4000])).tolist() == [200] * 20
    assert np.bincount(blocks_of([120] * 10)).tolist() == [60] * 20


@pytest.mark.parametrize("suite", ["quick", "full"])
@pytest.mark.parametrize("vocab_size", [_TOKENIZER.size, 256_000])
def test_the_suites_documents_stay_whole_but_the_long_one(suite: Literal["quick", "full"], vocab_size: int) -> None:
    documents = documents_for(_TOKENIZER, suite=suite, vocab_size=vocab_size, context_length=8192, window=4096)
    blocks = blocks_of([len(document.token_ids) for document in documents])
    start, cut = 0, {}
    for document in documents:
        end = start + len(document.token_ids)
        cut[document.slice] = max(cut.get(document.slice, 0), len(np.unique(blocks[start:end])))
        start = end
    assert start == len(blocks)
    assert {name: count for name, count in cut.items() if name != "long"} == {
        "code": 1,
        "prose": 1,
        "scripts": 1,
        "chat": 1,
    }
    # its parts are no longer than one and a half times the longest of the others
    assert cut["long"] > 1
    others = max(len(document.token_ids) for document in documents if document.slice != "long")
    assert np.bincount(blocks).max() <= 1.5 * others
    # of unequal lengths, as many as so many equal ones
    assert len(blocks) ** 2 / (np.bincount(blocks) ** 2).sum() > 17


def test_interval_of_independent_positions_is_the_textbooks() -> None:
    values = np.random.default_rng(0).exponential(size=3200)
    upper = Bootstrap(np.arange(3200)).upper_mean(values)
    assert upper - values.mean() == pytest.approx(1.96 * values.std() / np.sqrt(3200), rel=0.1)


def test_interval_of_documents_that_repeat_is_wider() -> None:
    """Documents of 32 equal values are 100 draws, not 3,200: sqrt(32) times the width."""
    values = np.repeat(np.random.default_rng(0).exponential(size=100), 32)
    upper = _over(*[32] * 100).upper_mean(values)
    assert upper - values.mean() == pytest.approx(1.96 * values.std() / np.sqrt(100), rel=0.25)


def test_interval_of_whole_documents_sees_how_documents_differ() -> None:
    """Each document has a level of its own: cut into runs the interval would be half as wide."""
    levels = np.random.default_rng(5).exponential(size=24)
    values = np.repeat(levels, 128)
    whole = _over(*[128] * 24).upper_mean(values) - values.mean()
    cut = Bootstrap(np.arange(24 * 128) // 32).upper_mean(values) - values.mean()
    assert whole == pytest.approx(2 * cut, rel=0.2)


def _holds(generator: np.random.Generator, figure: str, true: float) -> float:
    """How often the upper end of a figure over 40 documents of exponential values lies above the true one."""
    bootstrap = _over(*[32] * 40)
    found = []
    for _ in range(150):
        values = generator.exponential(size=40 * 32)
        upper = {
            "mean": lambda values=values: bootstrap.upper_mean(values),
            "p95": lambda values=values: bootstrap.upper_quantiles(values, (0.95,))[0],
            "share": lambda values=values: bootstrap.upper_share(values > 3),
            "ratio": lambda values=values: bootstrap.upper_ratio(values**2, values + 1),
        }[figure]()
        found.append(upper >= true)
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("figure", "true"), [("mean", 1.0), ("p95", -np.log(0.05)), ("share", np.exp(-3.0)), ("ratio", 1.0)]
)
def test_the_bound_holds_as_often_as_it_says(figure: str, true: float) -> None:
    """97.5 % of one-sided bounds lie above the true figure; skewed values cost a few per cent of that, and a bound that
    always holds would be too wide."""
    assert 0.9 < _holds(np.random.default_rng(1), figure, true) < 1


def test_the_same_values_give_the_same_bound() -> None:
    values = np.random.default_rng(3).random(500)
    assert _over(500).upper_mean(values) == _over(500).upper_mean(values)


def test_one_block_has_no_spread() -> None:
    bootstrap, values = _over(3), np.array([1.0, 3.0, 5.0])
    assert bootstrap.upper_mean(values) == 3
    assert bootstrap.upper_ratio(values, np.array([1.0, 1.0, 4.0])) == 1.5
    assert bootstrap.upper_quantiles(values, (0.5, 1.0)) == (3, 5)


def test_positions_without_a_value_do_not_count() -> None:
    values = np.random.default_rng(4).random(20 * 32)
    gaps = np.insert(values, np.arange(0, 640, 32), np.nan)
    assert _over(*[33] * 20).upper_mean(gaps) == pytest.approx(_over(*[32] * 20).upper_mean(values), rel=1e-12)


def test_quantiles_are_those_of_the_positions_that_a_draw_has() -> None:
    """Against numpy, draw by draw, in documents of different lengths."""
    lengths = [17, *[40] * 22]
    blocks, values = blocks_of(lengths), np.random.default_rng(6).exponential(size=sum(lengths))
    bootstrap = Bootstrap(blocks)
    parts = [values[blocks == block] for block in range(len(lengths))]
    generator = np.random.default_rng(20240229)
    draws = generator.multinomial(23, np.full(23, 1 / 23), size=2000)
    each = [
        np.quantile(np.concatenate([np.tile(p, n) for p, n in zip(parts, draw, strict=True)]), 0.99) for draw in draws
    ]
    centre = np.quantile(values, 0.99)
    expected = centre + np.sqrt(23 / 22) * (np.quantile(each, 0.975) - centre)
    assert bootstrap.upper_quantiles(values, (0.99,))[0] == pytest.approx(expected, rel=1e-12)


def test_a_ratio_is_of_sums_that_were_drawn_together() -> None:
    """Parts that are twice the wholes everywhere leave nothing to spread."""
    wholes = np.random.default_rng(7).exponential(size=640)
    assert _over(*[32] * 20).upper_ratio(2 * wholes, wholes) == pytest.approx(2, rel=1e-12)


def test_what_never_happened_may_still_happen() -> None:
    """The chance to see none of it in n positions is (1 - share)^n."""
    upper = _over(*[25] * 20).upper_share(np.zeros(500, np.bool_))
    assert (1 - upper) ** 500 == pytest.approx(0.025)
    assert _over(*[25] * 20).upper_share(np.ones(500, np.bool_)) == 1


def test_what_happened_more_often_has_no_lower_bound() -> None:
    """A few events drawn again spread less than chance does: none in 500 would leave more open than one."""
    uppers = []
    for events in range(6):
        happened = np.zeros(500, np.bool_)
        happened[: events * 90 : 90] = True
        uppers.append(_over(*[25] * 20).upper_share(happened))
    assert uppers == sorted(uppers)
    # Wilson: (1 + 1.92 + 1.96 sqrt(1 * 499 / 500 + 0.96)) / 503.84
    assert uppers[1] == pytest.approx(0.01125, rel=1e-3)
