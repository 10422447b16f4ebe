"""The trade-off that was found, for people and for machines. Torch-free."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from gemma_export.precision import WeightScheme

__all__ = ["JSON_FILE", "PLOT_FILE", "MixedPrecision", "Point"]

# beside the manifest, and listed in it
JSON_FILE, PLOT_FILE = "mixed_precision.json", "mixed_precision.png"
_VERSION = 1
# rows of the printed table beside the measured ones
_ROWS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One configuration of the curve: everything before it, and one matrix more."""

    # of the data file
    nbytes: int
    # nats: interpolated between measured points, and measured where it was
    estimated: float
    measured: float | None
    # what this point changes; None at the start
    matrix: str | None
    change: str | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "bytes": self.nbytes,
            "estimated_kl": _round(self.estimated),
            "measured_kl": None if self.measured is None else _round(self.measured),
            "tensor": self.matrix,
            "change": self.change,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """What `--max-kl` chose and why."""

    max_kl: float
    # measured on a true run of the chosen configuration, nats
    kl: float
    scheme: WeightScheme
    # steps of the curve that were taken
    taken: int
    # by bytes; one point where the scheme meets the bound as it is
    curve: tuple[Point, ...]
    # tokens the mean is over, and whole configurations that were run
    positions: int
    runs: int
    # whether 8-bit activations are part of the measurement
    rounds_activations: bool
    # stored matrix -> bits, block size, symmetry, quantizer; bits "float" where it is not quantised
    tensors: Mapping[str, Mapping[str, Any]]

    @property
    def nbytes(self) -> int:
        """Of the data file."""
        return self.curve[self.taken].nbytes

    def summary(self) -> dict[str, Any]:
        """For the manifest and --json. Four digits: the last bits of a sum depend on the machine."""
        return {
            "max_kl": self.max_kl,
            "kl": _round(self.kl),
            "positions": self.positions,
            "runs": self.runs,
            "rounded_activations": self.rounds_activations,
            "tensors": {name: dict(value) for name, value in self.tensors.items()},
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it, with the curve."""
        curve = [point.to_dict() for point in self.curve]
        return {"schema_version": _VERSION, **self.summary(), "taken": self.taken, "curve": curve}

    def to_json(self) -> bytes:
        """The content of mixed_precision.json."""
        return (json.dumps(self.to_dict(), indent=2) + "\n").encode()

    def table(self) -> list[str]:
        """The curve as lines: every measured point, and some between them."""
        step = max(1, len(self.curve) // _ROWS)
        lines = [f"{'MB':>10}{'mean KL':>11}  tensors given more bytes"]
        for index, point in enumerate(self.curve):
            if point.measured is None and index % step and index != self.taken:
                continue
            value = f"{point.measured:.3g}" if point.measured is not None else f"~{point.estimated:.3g}"
            what = f"{index}" if point.matrix is None else f"{index}: {point.matrix} {point.change}"
            mark = " <- chosen" if index == self.taken else ""
            lines.append(f"{point.nbytes / 1e6:>10.2f}{value:>11}  {what}{mark}")
        return lines

    def note(self) -> str:
        """One line."""
        more = (
            "as it is" if self.taken == 0 else f"with more bytes for {self._changed()} of {len(self.tensors)} tensors"
        )
        return (
            f"mean KL {self.kl:.3g} of at most {self.max_kl:g}, measured over {self.positions:,} positions: "
            f"{self.scheme.name} {more}"
        )

    def _changed(self) -> int:
        return len({point.matrix for point in self.curve[1 : self.taken + 1]})


def _round(value: float) -> float:
    return float(f"{value:.4g}")
