"""From what is kept of positions to the figures of one slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gemma_validation.findings import Distribution, Drift
from gemma_validation.metrics.bootstrap import Bootstrap, blocks_of

__all__ = ["deviation", "distribution", "summarise"]


def summarise(slice_name: str, documents: Sequence[npt.NDArray[np.void]], *, tau: float, lower_bound: bool) -> Drift:
    """The drift over some documents.

    Args:
        slice_name: "all", or a slice.
        documents: [n] of `POSITION` for each.
        tau: margin above which a changed token is a decisive flip, logits.
        lower_bound: the reference knows only its most likely tokens.

    Raises:
        ValueError: no position has a token after it.
    """
    found = np.concatenate(documents)
    scored = found[~np.isnan(found["shift"])]
    if not len(scored):
        raise ValueError(f"no position of the slice {slice_name!r} has a token after it")
    changed = ~found["same_top1"]
    decisive = changed & (found["margin"] > tau)
    nll = -float(scored["logprob_reference"].mean()), -float(scored["logprob_test"].mean())
    squares = float(found["squared_difference"].sum()), float(found["squared_reference"].sum())
    bootstrap = Bootstrap(blocks_of([len(document) for document in documents]))
    return Drift(
        slice=slice_name,
        documents=len(documents),
        positions=len(found),
        kl=distribution(found["kl"]),
        **_upper_ends(bootstrap, found, changed=changed, decisive=decisive),
        probability_shift_mean=float(np.abs(scored["shift"]).mean()),
        probability_shift_rms=float(np.sqrt(np.square(scored["shift"]).mean())),
        nll_reference=nll[0],
        nll_test=nll[1],
        perplexity_ratio=_perplexity_ratio(nll[1] - nll[0]),
        top1_agreement=float(1 - changed.mean()),
        decisive_flips=int(decisive.sum()),
        near_ties=int(changed.sum() - decisive.sum()),
        top10_overlap=float(found["overlap"].mean()),
        normalised_mse=_ratio(*squares),
        max_difference=_ratio(float(found["largest"].max()), deviation(found)),
        lower_bound=lower_bound,
    )


def _upper_ends(
    bootstrap: Bootstrap,
    found: npt.NDArray[np.void],
    *,
    changed: npt.NDArray[np.bool_],
    decisive: npt.NDArray[np.bool_],
) -> dict[str, float]:
    """Fields of `Drift` that end in _upper. The largest values have none, see `bootstrap`."""
    names = ("kl_median_upper", "kl_p95_upper", "kl_p99_upper", "kl_p999_upper")
    worse = found["logprob_reference"] - found["logprob_test"]
    difference, reference = found["squared_difference"], found["squared_reference"]
    # a reference without any spread has no other draws
    mse = bootstrap.upper_ratio(difference, reference) if reference.any() else _ratio(float(difference.sum()), 0.0)
    return {
        "kl_mean_upper": bootstrap.upper_mean(found["kl"]),
        **dict(zip(names, bootstrap.upper_quantiles(found["kl"], _SHARES), strict=True)),
        "top1_disagreement_upper": bootstrap.upper_share(changed),
        "decisive_flips_upper": bootstrap.upper_share(decisive),
        "top10_misses_upper": min(1.0, bootstrap.upper_mean(1 - found["overlap"])),
        "perplexity_ratio_upper": _perplexity_ratio(bootstrap.upper_mean(worse)),
        "probability_shift_rms_upper": float(np.sqrt(bootstrap.upper_mean(np.square(found["shift"])))),
        "normalised_mse_upper": mse,
    }


# of the distribution of KL: median to p999
_SHARES = (0.5, 0.95, 0.99, 0.999)
# a ruined model can be 10,000 nats worse: the ratio stays a number that JSON can hold
_LARGEST_LOG_RATIO = 700.0


def _perplexity_ratio(worse: float) -> float:
    """From nats a token."""
    return float(np.exp(min(worse, _LARGEST_LOG_RATIO)))


def _ratio(part: float, whole: float) -> float:
    """0 of 0 is 0; anything of 0, a reference without any spread, is the largest number."""
    if whole:
        return part / whole
    return float(np.finfo(np.float64).max) if part else 0.0


def deviation(found: npt.NDArray[np.void]) -> float:
    """Standard deviation of all of the reference's logits, from each row's mean and centred squares."""
    weights = found["vocab_size"].astype(np.float64)
    means = found["mean_reference"]
    centre = float((weights * means).sum() / weights.sum())
    squares = found["squared_reference"].sum() + (weights * (means - centre) ** 2).sum()
    return float(np.sqrt(squares / weights.sum()))


def distribution(values: npt.NDArray[np.float64]) -> Distribution:
    """Mean and quantiles, interpolated linearly."""
    median, p95, p99, p999 = (float(value) for value in np.quantile(values, _SHARES))
    return Distribution(mean=float(values.mean()), median=median, p95=p95, p99=p99, p999=p999, max=float(values.max()))
