"""The trade-off as a picture, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import io
import os
from pathlib import Path

from gemma_export.mixed_precision.report import MixedPrecision

__all__ = ["can_plot", "draw"]


def can_plot() -> bool:
    """Whether matplotlib is there; it is not imported."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(mixed: MixedPrecision, cache: Path) -> bytes:
    """The curve as PNG; the same curve gives the same bytes.

    Args:
        mixed: what was found.
        cache: where matplotlib keeps its list of fonts, unless the user says otherwise.
    """
    os.environ.setdefault("MPLCONFIGDIR", str(cache / "matplotlib"))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    megabytes = [point.nbytes / 1e6 for point in mixed.curve]
    axes.plot(megabytes, [point.estimated for point in mixed.curve], color="#9aa5b1", linewidth=1.5, label="estimated")
    runs = [(point.nbytes / 1e6, point.measured) for point in mixed.curve if point.measured is not None]
    axes.plot(*zip(*runs, strict=True), "o", color="#1f6f8b", markersize=5, label="measured")
    axes.plot(mixed.nbytes / 1e6, mixed.kl, "o", color="#d1495b", markersize=9, label="chosen")
    axes.axhline(mixed.max_kl, color="#d1495b", linewidth=1, linestyle="--", label=f"--max-kl {mixed.max_kl:g}")
    axes.set_yscale("log")
    axes.set_xlabel("weights, MB")
    axes.set_ylabel("mean KL to float32, nats")
    axes.set_title(f"{mixed.scheme.name}: bytes against drift, {mixed.positions:,} calibration positions")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(frameon=False)
    content = io.BytesIO()
    # the default names matplotlib's release
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
