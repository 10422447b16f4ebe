"""Verdicts: what is broken, drifted or undecided never passes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from drift_figures import drift
from hypothesis import given
from hypothesis import strategies as st

from gemma_validation.budgets import METRICS, Bound, Budget, judge
from gemma_validation.findings import Check
from gemma_validation.invariances.bounds import Bounds
from gemma_validation.invariances.differences import Difference


def _budget(*bounds: tuple[str, str, float], least: int = 200) -> Budget:
    entries = tuple(Bound(slice=slice, metric=metric, bound=bound, reason="why") for slice, metric, bound in bounds)
    return Budget(name="mine.toml", min_positions=least, bounds=entries)


def _check(group: Any, outcome: Any, name: str = "hashes") -> Check:
    return Check(group=group, name=name, outcome=outcome, message="what was found")


_BOUNDS = Bounds(logits=1e-4, cache=1e-4, reason="why")
_BOUND = _budget(("all", "kl_mean", 0.2))
_FINE = (_check("structure", "passed"), _check("invariance", "passed"), _check("invariance", "skipped"))


def test_all_within_bounds_passes_and_says_how_close() -> None:
    budget = _budget(
        ("all", "kl_mean", 0.2), ("all", "kl_p99", 0.34), ("all", "decisive_flips", 1.0), ("all", "kl_max", 0.9)
    )
    gates, verdict, reasons = judge(budget, [drift()], _FINE)
    assert [(gate.metric, gate.measured, gate.upper, gate.outcome) for gate in gates] == [
        ("kl_mean", 0.1, 0.11, "passed"),
        ("kl_p99", 0.3, 0.33, "passed"),
        ("decisive_flips", 0.001, 0.0015, "passed"),
        ("kl_max", 0.5, None, "passed"),
    ]
    assert verdict == "passed"
    assert reasons == (
        "every bound holds; closest: kl_p99 of all positions 0.33 of at most 0.34 (its 95 % interval ends there; "
        "measured 0.3)",
    )
    assert judge(_budget(("all", "kl_max", 0.9)), [drift()], _FINE)[2] == (
        "every bound holds; closest: kl_max of all positions 0.5 of at most 0.9",
    )


def test_a_ratio_counts_from_one_and_is_shown_in_full() -> None:
    budget = _budget(("all", "kl_mean", 0.12), ("all", "perplexity_ratio", 1.00002))
    near = drift(perplexity_ratio=1.000012, perplexity_ratio_upper=1.000019)
    assert judge(budget, [near], ())[2] == (
        "every bound holds; closest: perplexity_ratio of all positions 1.000019 of at most 1.00002 (its 95 % interval "
        "ends there; measured 1.000012)",
    )
    far = drift(perplexity_ratio=1.0, perplexity_ratio_upper=1.0)
    assert judge(budget, [far], ())[2] == (
        "every bound holds; closest: kl_mean of all positions 0.11 of at most 0.12 (its 95 % interval ends there; "
        "measured 0.1)",
    )
    open_end = drift(perplexity_ratio=1.000012, perplexity_ratio_upper=1.000021)
    assert judge(budget, [open_end], ())[1:] == (
        "inconclusive",
        ("perplexity_ratio of all positions: 1.000012 is within 1.00002, but its 95 % interval ends at 1.000021",),
    )
    assert judge(budget, [drift(perplexity_ratio=1.00003)], ())[2] == (
        "perplexity_ratio of all positions: 1.00003, at most 1.00002 passes",
    )
    none = _budget(("all", "decisive_flip_count", 0.0))
    assert judge(none, [drift(decisive_flips=1)], ())[1] == "drift"
    assert judge(none, [drift(decisive_flips=0)], ())[1:] == ("passed", ("every bound holds",))


@pytest.mark.parametrize(
    ("bound", "outcome", "verdict"),
    [
        (0.09, "failed", "drift"),
        # measured 0.1, its interval ends at 0.11
        (0.1, "inconclusive", "inconclusive"),
        (0.109, "inconclusive", "inconclusive"),
        (0.11, "passed", "passed"),
    ],
)
def test_the_upper_end_decides(bound: float, outcome: str, verdict: str) -> None:
    gates, found, reasons = judge(_budget(("all", "kl_mean", bound)), [drift()], _FINE)
    assert (gates[0].outcome, found) == (outcome, verdict)
    assert (gates[0].bound, gates[0].reason) == (bound, "why")
    if outcome == "inconclusive":
        assert reasons == (f"kl_mean of all positions: 0.1 is within {bound:.3g}, but its 95 % interval ends at 0.11",)


def test_too_few_positions_decide_nothing_but_may_fail() -> None:
    few = drift(positions=199)
    assert judge(_BOUND, [few], _FINE)[1:] == (
        "inconclusive",
        ("kl_mean of all positions: 199 positions, at least 200 are needed",),
    )
    assert judge(_budget(("all", "kl_mean", 0.01)), [few], _FINE)[1] == "drift"


def test_a_quantile_of_too_few_positions_is_left_out() -> None:
    budget = _budget(("all", "kl_mean", 0.2), ("all", "kl_p99", 0.01))
    gates, verdict, _ = judge(budget, [drift(positions=999)], _FINE)
    assert ([gate.outcome for gate in gates], verdict) == (["passed", "skipped"], "passed")
    assert judge(budget, [drift(positions=1000)], _FINE)[1] == "drift"
    only = _budget(("all", "kl_p99", 0.9))
    assert judge(only, [drift(positions=999)], _FINE)[1:] == (
        "inconclusive",
        ("no bound of mine.toml was measured: nothing proves the export",),
    )


def test_slices_have_bounds_of_their_own() -> None:
    budget = _budget(("all", "kl_mean", 0.2), ("scripts", "kl_mean", 0.05), ("chat", "kl_mean", 0.0))
    gates, verdict, reasons = judge(budget, [drift(), drift(slice="scripts")], _FINE)
    assert [(gate.slice, gate.outcome) for gate in gates] == [("all", "passed"), ("scripts", "failed")]
    assert (verdict, reasons) == ("drift", ("kl_mean of scripts: 0.1, at most 0.05 passes",))


def test_nothing_measured_is_no_pass() -> None:
    assert judge(_BOUND, [], _FINE)[1] == "inconclusive"
    assert judge(_budget(("chat", "kl_mean", 1.0)), [drift()], _FINE)[1] == "inconclusive"


def test_worst_first() -> None:
    checks = (
        _check("invariance", "inconclusive", "batch"),
        _check("invariance", "failed", "padding"),
        _check("structure", "failed", "hashes"),
    )
    budget = _budget(("all", "kl_mean", 0.05), ("all", "top1_disagreement", 0.061))
    _, verdict, reasons = judge(budget, [drift()], checks)
    assert verdict == "broken"
    assert [reason.split(":")[0] for reason in reasons] == [
        "hashes",
        "kl_mean of all positions",
        "padding",
        "top1_disagreement of all positions",
        "batch",
    ]
    assert judge(budget, [drift()], checks[:2])[1] == "drift"
    assert judge(_BOUND, [drift()], checks[:2])[1] == "drift"
    assert judge(_BOUND, [drift()], checks[:1])[1] == "inconclusive"


def test_what_is_not_finite_is_broken() -> None:
    """Wherever it was found, and whatever the gates say."""
    wrong = Difference(logits=float("nan"), cache=0.1).judged("graph last8", _BOUNDS)
    _, verdict, reasons = judge(_BOUND, [drift()], (*_FINE, wrong))
    assert (verdict, reasons) == ("broken", ("graph last8: logits: not finite",))
    assert (wrong.group, wrong.outcome, wrong.measured, wrong.finite) == ("invariance", "failed", None, False)
    far = Difference(logits=0.5).judged("graph last8", _BOUNDS)
    assert far.finite
    assert judge(_BOUND, [drift()], (*_FINE, far))[1] == "drift"
    # the worst first
    assert judge(_BOUND, [drift()], (far, wrong))[2][0] == "graph last8: logits: not finite"


def test_what_is_no_number_fails() -> None:
    assert judge(_budget(("all", "normalised_mse", 1.0)), [drift(normalised_mse=float("nan"))], ())[1] == "drift"
    assert judge(_BOUND, [drift(kl_mean_upper=float("nan"))], ())[1] == "inconclusive"


@given(
    st.sampled_from(sorted(METRICS)),
    st.floats(0, 2),
    st.integers(1, 30_000),
    st.lists(
        st.tuples(
            st.sampled_from(("structure", "invariance")),
            st.sampled_from(("passed", "failed", "inconclusive", "skipped")),
        )
    ),
)
def test_a_pass_is_a_pass_of_everything(
    metric: str, bound: float, positions: int, outcomes: list[tuple[str, str]]
) -> None:
    found = dataclasses.replace(drift(), positions=positions)
    checks = [_check(group, outcome) for group, outcome in outcomes]
    gates, verdict, reasons = judge(_budget(("all", metric, bound)), [found], checks)
    decided = gates[0].measured if gates[0].upper is None else gates[0].upper
    fine = gates[0].outcome == "passed" and decided <= bound and positions >= 200
    fine = fine and all(check.outcome in ("passed", "skipped") for check in checks)
    assert (verdict == "passed") == fine
    assert reasons
    assert all(reason and "\n" not in reason for reason in reasons)
