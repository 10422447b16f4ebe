"""`--max-kl`: the fewest bytes whose mean KL stays under a bound, found by measuring what each matrix's bits cost.

    candidates.py   which matrices may be stored how, and in how many bytes
    reference.py    the true mean KL of a whole configuration, on calibration text
    sensitivity.py  what each matrix costs alone, all in one sweep through the layers
    curve.py        the order in which bytes buy most, and the search along it
    choose.py       all of it
    report.py, plot.py   the trade-off for people and machines

Importing the package imports no torch: plans ask for the smallest and the largest outcome.
"""

from __future__ import annotations

from gemma_export.mixed_precision.candidates import Choice, Matrix, largest_scheme, matrices_of, with_scheme
from gemma_export.mixed_precision.plot import can_plot
from gemma_export.mixed_precision.report import JSON_FILE, PLOT_FILE, MixedPrecision, Point

__all__ = [
    "JSON_FILE",
    "PLOT_FILE",
    "Choice",
    "Matrix",
    "MixedPrecision",
    "Point",
    "can_plot",
    "largest_scheme",
    "matrices_of",
    "with_scheme",
]
