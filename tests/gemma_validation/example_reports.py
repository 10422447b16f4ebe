"""Reports as runs of gemma-validate make them, and one whose every text is hostile."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from gemma_validation.findings import (
    Alternative,
    Check,
    Distribution,
    Drift,
    Flip,
    Gate,
    GreedyDivergence,
    LayerPoint,
    Localisation,
    PositionDrift,
    ReferenceAbout,
    Report,
    Subject,
)

__all__ = ["HOSTILE", "REPORTS", "broken", "drifted", "golden", "hostile", "inconclusive", "passed"]

SLICES = ("all", "code", "prose", "scripts", "long", "chat")
# ends of elements, attributes, tables, links and lines; control characters, half a pair, overrides, right to left
HOSTILE = (
    "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;]]>--><![CDATA[\n\r\n| a | b |\n"
    "# title [link](https://example.org) ![i](x) `code` ``` ~~~ <!-- @user \\| \x00\x01\x1b[31m\x7f\x85"
    "\ud800 \udfff \ufffe \uffff \u202eoverride\u2066 \u200b \U000e0041 שלום עולם مرحبا بالعالم 😀 "
)


def passed(**changes: Any) -> Report:
    """int4 within its budget, measured against transformers."""
    slices = tuple(_drift(name, scale=1 + index / 4) for index, name in enumerate(SLICES))
    report = Report(
        subject=Subject(
            directory="/home/someone/models/gemma-tiny-int4",
            variant="tiny",
            family="gemma",
            precision="int4",
            target="cpu",
            provider="cpu",
            onnxruntime="1.32.0",
            weights_sha256="3f" * 32,
        ),
        reference=ReferenceAbout(
            kind="transformers", name="tiny", dtype="float32", versions={"torch": "2.13.0", "transformers": "5.23.1"}
        ),
        suite="quick",
        verdict="passed",
        reasons=("every gate holds: the tightest is KL, mean at 62 % of its bound",),
        checks=_checks(),
        drift=slices,
        noise_floor=tuple(_drift(name, scale=0.02) for name in SLICES),
        gates=_gates(),
        positions=tuple(_positions(name, index) for index, name in enumerate(SLICES[1:])),
        flips=tuple(_flip(index) for index in range(3)),
        greedy=(
            GreedyDivergence(slice="code", document="shelve.py", tokens=64, first=None, margin=None),
            GreedyDivergence(slice="prose", document="a walk", tokens=64, first=17, margin=0.031),
        ),
        localisation=_localisation(None),
        tau=0.2,
        seconds={"structure": 0.4, "reference": 3.1, "measure": 7.25, "invariances": 4.0},
        started="2026-11-29T12:00:00Z",
    )
    return dataclasses.replace(report, **changes)


def drifted() -> Report:
    """One layer is wrong, and the localiser names it."""
    gates = tuple(
        dataclasses.replace(gate, measured=gate.bound * 40, upper=gate.bound * 55, outcome="failed")
        if gate.metric == "kl_mean"
        else gate
        for gate in _gates()
    )
    flips = tuple(_flip(index) for index in range(44))
    reasons = ("kl_mean of all is 0.08 nats, at most 0.002", "layer 2 injects 300 times the error of its neighbours")
    culprit = _localisation("layers.2.mlp_residual")
    return passed(verdict="drift", reasons=reasons, gates=gates, flips=flips, localisation=culprit)


def inconclusive() -> Report:
    """The interval spans the bound."""
    first, *others = _gates()
    spanning = dataclasses.replace(first, measured=first.bound * 0.9, upper=first.bound * 1.2, outcome="inconclusive")
    reasons = ("kl_mean of all: 0.0018 nats measured, its 95 % interval ends above 0.002",)
    return passed(verdict="inconclusive", reasons=reasons, gates=(spanning, *others), noise_floor=(), localisation=None)


def broken() -> Report:
    """A value that is not finite ended the comparison; one check measured NaN itself."""
    reason = "logits of the test are not finite: document shelve.py, position 17"
    nan = Check(group="structure", name="finite", outcome="failed", message=reason, measured=math.nan, bound=0.0)
    infinite = dataclasses.replace(_gates()[0], measured=math.inf, upper=math.nan, outcome="failed")
    return passed(
        verdict="broken",
        reasons=(reason,),
        checks=(*_checks(), nan),
        drift=(),
        noise_floor=(),
        gates=(infinite,),
        positions=(dataclasses.replace(_positions("code", 1), kl=(1e-4, 0.0, math.nan, math.inf, 2e-3)),),
        flips=(),
        greedy=(),
        localisation=None,
    )


def golden() -> Report:
    """Against a golden pack: KL is a lower bound, nothing else is known of the reference."""
    about = ReferenceAbout(kind="golden", name="/data/packs/tiny.golden", dtype="float32", versions={})
    drift = tuple(dataclasses.replace(drift, lower_bound=True) for drift in passed().drift)
    return passed(reference=about, drift=drift, noise_floor=(), localisation=None, greedy=())


def hostile() -> Report:
    """Every string is made to break something, some are long; the enumerations are as they must be."""
    report = drifted()
    long = HOSTILE * 40

    def poisoned(value: Any, name: str = "") -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [field.name for field in dataclasses.fields(value)]
            return dataclasses.replace(value, **{key: poisoned(getattr(value, key), key) for key in names})
        if isinstance(value, tuple):
            return tuple(poisoned(item, name) for item in value)
        if isinstance(value, dict):
            return {f"{key}{HOSTILE}": poisoned(item) for key, item in value.items()}
        if isinstance(value, str) and name not in ("group", "outcome", "kind", "suite", "verdict"):
            return value + (long if name in ("message", "context", "reason", "reasons") else HOSTILE)
        return value

    found: Report = poisoned(report)
    return found


def _drift(name: str, *, scale: float) -> Drift:
    mean = 1.1e-3 * scale
    kl = Distribution(mean=mean, median=mean / 3, p95=mean * 4, p99=mean * 9, p999=mean * 31, max=mean * 88)
    return Drift(
        slice=name,
        documents=40 if name == "all" else 8,
        positions=20_480 if name == "all" else 4_096,
        kl=kl,
        kl_mean_upper=mean * 1.15,
        kl_median_upper=mean / 2.5,
        kl_p95_upper=mean * 4.6,
        kl_p99_upper=mean * 11,
        kl_p999_upper=mean * 37,
        top1_disagreement_upper=0.012 * scale,
        decisive_flips_upper=0.0011 * scale,
        top10_misses_upper=0.0143,
        perplexity_ratio_upper=math.exp(mean * 0.7),
        probability_shift_rms_upper=1.1e-2 * scale,
        normalised_mse_upper=4.7e-4 * scale,
        probability_shift_mean=2.5e-3 * scale,
        probability_shift_rms=9.4e-3 * scale,
        nll_reference=1.9321,
        nll_test=1.9321 + mean / 2,
        perplexity_ratio=math.exp(mean / 2),
        top1_agreement=1 - 0.009 * scale,
        decisive_flips=int(14 * scale),
        near_ties=int(61 * scale),
        top10_overlap=0.9871,
        normalised_mse=4.2e-4 * scale,
        max_difference=0.81 * scale,
    )


def _gates() -> tuple[Gate, ...]:
    bounds = {"kl_mean": (2e-3, 1.24e-3, 1.42e-3), "kl_p99": (2e-2, 9.9e-3, 1.21e-2)}
    bounds |= {"kl_max": (0.3, 0.0968, None)}
    bounds |= {"top1_disagreement": (0.02, 0.009, 0.012), "perplexity_ratio": (1.003, 1.00055, 1.0007)}
    reason = "int4 of the tiny model measured 1.3e-3 on held-out text; 1.5 times that"
    return tuple(
        Gate(metric=metric, slice="all", bound=b, reason=reason, measured=m, upper=u, outcome="passed")
        for metric, (b, m, u) in bounds.items()
    )


def _checks() -> tuple[Check, ...]:
    return (
        Check(group="structure", name="hashes", outcome="passed", message="14 files as the manifest says"),
        Check(group="structure", name="op allow-list", outcome="passed", message="11 operators, all of the target"),
        Check(
            group="invariance",
            name="chunks of 7",
            outcome="passed",
            message="as one shot, logits and cache",
            measured=3.1e-6,
            bound=1e-4,
        ),
        Check(group="invariance", name="buffer sharing", outcome="skipped", message="only CUDA shares its buffers"),
    )


def _positions(name: str, seed: int) -> PositionDrift:
    values = np.random.default_rng(seed).lognormal(-8, 1.6, 1024 if name == "long" else 240)
    return PositionDrift(slice=name, document=f"{name} sample", first=1, kl=tuple(map(float, values)))


def _flip(index: int) -> Flip:
    texts = (" return", "\n", "  ", "שלום", "\u200d", "\ud83d")

    def five(offset: int) -> tuple[Alternative, ...]:
        return tuple(
            Alternative(token_id=100 + rank, text=texts[(rank + offset) % len(texts)], logprob=-0.4 - rank)
            for rank in range(5)
        )

    return Flip(
        slice="code" if index % 2 == 0 else "scripts",
        document="shelve.py",
        position=100 + index,
        context='def open(filename, flag=\'c\'):\n    """Open a persistent dictionary."""\n    ' * 9,
        margin=1.7 - index / 40,
        reference=five(0),
        test=five(1),
    )


def _localisation(culprit: str | None) -> Localisation:
    points = [_point("embedding", None, 1e-9, culprit)]
    for layer in range(4):
        points += [_point(f"layers.{layer}.{kind}_residual", layer, 2e-5, culprit) for kind in ("attn", "mlp")]
    points += [_point("norm", None, 2e-5, culprit), _point("logits", None, 2e-5, culprit)]
    running = 0.0
    summed = []
    for point in points:
        running += point.injected or 0.0
        summed.append(dataclasses.replace(point, cumulative=running))
    message = f"{culprit} injects 300 times the error of its neighbours" if culprit else "no layer stands out"
    return Localisation(points=tuple(summed), culprit=culprit, message=message)


def _point(name: str, layer: int | None, injected: float, culprit: str | None) -> LayerPoint:
    return LayerPoint(
        point=name,
        layer=layer,
        cumulative=0.0,
        injected=None if name == "logits" else injected * (300 if name == culprit else 1),
        peak=31.5 + 40 * (layer or 0),
        headroom_bits=None if name == "logits" else 11.0 - 1.3 * (layer or 0),
    )


REPORTS = {
    "passed": passed(),
    "drifted": drifted(),
    "inconclusive": inconclusive(),
    "broken": broken(),
    "golden": golden(),
    "hostile": hostile(),
}
