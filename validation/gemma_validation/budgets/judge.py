"""From what was found to a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gemma_validation.budgets.budget import METRICS, Bound, Budget
from gemma_validation.findings import Check, Drift, Gate, Outcome, Verdict

__all__ = ["judge"]


def judge(
    budget: Budget, drifts: Sequence[Drift], checks: Sequence[Check]
) -> tuple[tuple[Gate, ...], Verdict, tuple[str, ...]]:
    """Holds everything against the budget.

    Structure that is wrong, and values that are not finite, are broken, whatever the numbers are; then drift: a failed
    gate or invariance; then inconclusive: a gate or check that decided nothing, or no gate that was measured. Only what
    is left passes.

    Args:
        budget: bounds.
        drifts: of "all" and of slices; a slice that is not there is not held against its bounds.
        checks: without a reference.

    Returns:
        The gates in the budget's order, the verdict, and one line for each reason, worst first.
    """
    found = {drift.slice: drift for drift in drifts}
    gates = tuple(
        _gate(bound, found[bound.slice], budget.min_positions) for bound in budget.bounds if bound.slice in found
    )
    failed = [check for check in checks if check.outcome == "failed"]
    broken = [_check_line(check) for check in failed if _is_broken(check)]
    drift = [_gate_line(gate) for gate in gates if gate.outcome == "failed"]
    drift += [_check_line(check) for check in failed if not _is_broken(check)]
    open_ends = list(_open_ends(budget, gates, found, checks))
    verdict: Verdict = "broken" if broken else "drift" if drift else "inconclusive" if open_ends else "passed"
    return gates, verdict, (*broken, *drift, *open_ends) or (_passed(gates),)


def _is_broken(check: Check) -> bool:
    return check.group == "structure" or not check.finite


def _gate(bound: Bound, drift: Drift, min_positions: int) -> Gate:
    metric = METRICS[bound.metric]
    measured = metric.measured(drift)
    upper = metric.upper(drift) if metric.upper is not None else None
    return Gate(
        metric=bound.metric,
        slice=bound.slice,
        bound=bound.bound,
        reason=bound.reason,
        measured=measured,
        upper=upper,
        outcome=_outcome(bound, drift, measured, upper, min_positions),
    )


def _outcome(bound: Bound, drift: Drift, measured: float, upper: float | None, min_positions: int) -> Outcome:
    if drift.positions < METRICS[bound.metric].positions:
        return "skipped"
    # a comparison with NaN is false: it must not pass
    if not measured <= bound.bound:
        return "failed"
    if drift.positions < min_positions or not (upper is None or upper <= bound.bound):
        return "inconclusive"
    return "passed"


def _open_ends(
    budget: Budget, gates: Sequence[Gate], found: dict[str, Drift], checks: Sequence[Check]
) -> Iterator[str]:
    if not any(gate.outcome != "skipped" for gate in gates):
        yield f"no bound of {budget.name} was measured: nothing proves the export"
    for gate in gates:
        if gate.outcome == "inconclusive":
            positions = found[gate.slice].positions
            few = positions < budget.min_positions
            words = (
                f"{positions} positions, at least {budget.min_positions} are needed"
                if few
                else f"{_shown(gate, gate.measured)} is within {_shown(gate, gate.bound)}, "
                f"but its 95 % interval ends at {_shown(gate, _deciding(gate))}"
            )
            yield f"{_name(gate)}: {words}"
    yield from (_check_line(check) for check in checks if check.outcome == "inconclusive")


def _passed(gates: Sequence[Gate]) -> str:
    """The gate that came closest."""
    decided = [gate for gate in gates if gate.outcome == "passed" and gate.bound > METRICS[gate.metric].least]
    if not decided:
        return "every bound holds"
    closest = max(decided, key=_share_of_bound)
    value, bound = _shown(closest, _deciding(closest)), _shown(closest, closest.bound)
    interval = (
        ""
        if closest.upper is None
        else f" (its 95 % interval ends there; measured {_shown(closest, closest.measured)})"
    )
    return f"every bound holds; closest: {_name(closest)} {value} of at most {bound}{interval}"


def _share_of_bound(gate: Gate) -> float:
    """Of the way from no drift at all to the bound."""
    least = METRICS[gate.metric].least
    return (_deciding(gate) - least) / (gate.bound - least)


def _shown(gate: Gate, value: float) -> str:
    # a ratio of 1.00002 is no 1
    return f"{value:.7g}" if METRICS[gate.metric].least else f"{value:.3g}"


def _deciding(gate: Gate) -> float:
    return gate.measured if gate.upper is None else gate.upper


def _gate_line(gate: Gate) -> str:
    return f"{_name(gate)}: {_shown(gate, gate.measured)}, at most {_shown(gate, gate.bound)} passes"


def _name(gate: Gate) -> str:
    return f"{gate.metric} of {'all positions' if gate.slice == 'all' else gate.slice}"


def _check_line(check: Check) -> str:
    return f"{check.name}: {check.message}"
