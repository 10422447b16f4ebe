"""How far an artifact is from the reference at every point: of its own stream, and of each half alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemma_runtime.element_types import ELEMENT_TYPES
from gemma_runtime.manifest import Graph, Manifest
from gemma_validation.artifact import load_graph, residual_shift
from gemma_validation.findings import NOT_FINITE, LayerPoint
from gemma_validation.localise.graphs import (
    ZEROS,
    computed_values,
    fed_input,
    fed_model,
    tap_output,
    tapped_model,
)
from gemma_validation.localise.points import LOGITS, Point, checked_points
from gemma_validation.localise.session import MemorySession
from gemma_validation.localise.streams import ReferenceStreams

__all__ = ["Measured", "measure_points"]

# largest numbers of the activations' formats that end early
_LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}
# What a stream has to stay below: float32's is held against float16, as which the model may be exported next.
_CEILING = {**_LARGEST, "float32": 65504.0}
# the least that is stored as infinity: half a unit behind the largest number; of float32, its largest number
_INFINITE = {"float16": 65520.0, "bfloat16": 3.3961775292304957e38, "float32": 3.4028234663852886e38}
# rows of logits in float64 at a time: 64 MB of a vocabulary of 256,000
_ROWS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One point, and what is needed to judge it."""

    point: Point
    found: LayerPoint
    # what the activations' format alone costs the half: its input and its output rounded, over what it adds
    rounding: float


class _Sums:
    """Squares over all documents, in float64."""

    def __init__(self) -> None:
        self.difference = self.reference = 0.0

    def add(self, found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
        for start in range(0, len(expected), _ROWS):
            wide = expected[start : start + _ROWS].astype(np.float64)
            self.reference += float(np.square(wide).sum())
            self.difference += float(np.square(found[start : start + _ROWS] - wide).sum())

    def ratio(self, other: float | None = None) -> float:
        base = self.reference if other is None else other
        if not math.isfinite(self.difference):
            return NOT_FINITE
        return min(NOT_FINITE, self.difference / base) if base > 0 else 0.0


def measure_points(
    directory: Path, manifest: Manifest, streams: ReferenceStreams, *, num_layers: int, provider: str
) -> tuple[Measured, ...]:
    """Every point's errors, in the order of the computation.

    Two sessions one after the other, each in the memory of the artifact: of its own stream, and of the fed one.

    Args:
        directory: the folder.
        manifest: of it.
        streams: the reference's.
        num_layers: of the model.
        provider: that runs the graphs.

    Raises:
        FolderUnreadableError: a graph does not load, or lacks a point.
        ProviderUnavailableError: the provider does not start.
    """
    entry = _graph_of(manifest)
    model = load_graph(directory / entry.file)
    points = checked_points(num_layers, computed_values(model), entry.file)
    element = ELEMENT_TYPES[manifest.precision.activation_dtype]
    scale = 2.0 ** -residual_shift(manifest)
    runner = _Runner(points, streams, element.name, scale)
    own = runner.own(MemorySession(tapped_model(model, points), directory, manifest, entry, provider=provider))
    graph = fed_model(model, points, dtype=element.onnx)
    fed = runner.fed(MemorySession(graph, directory, manifest, entry, provider=provider))
    return tuple(_measured(point, own, fed, runner, element.name) for point in points)


def _graph_of(manifest: Manifest) -> Graph:
    """The graph with logits of every position; the main one where there is none."""
    return next((graph for graph in manifest.graphs if graph.logits == "all"), manifest.graph("main"))


class _Runner:
    """Runs both graphs over the documents and sums what they show."""

    def __init__(self, points: Sequence[Point], streams: ReferenceStreams, dtype: str, scale: float) -> None:
        self._points, self._streams, self._dtype, self._scale = points, streams, dtype, scale
        # by point: the largest |value| as it is stored (`_peak`); squares of what a half adds; squares of rounding
        self.peaks = dict.fromkeys((point.name for point in points), 0.0)
        self.branches = dict.fromkeys((point.name for point in points), 0.0)
        self.roundings = dict.fromkeys((point.name for point in points), 0.0)

    def own(self, session: MemorySession) -> dict[str, _Sums]:
        """Squares of the artifact's stream against the reference's; notes peaks."""
        sums = {point.name: _Sums() for point in self._points}
        for index, document in enumerate(self._streams.documents):
            found = session.run(document.token_ids, [tap_output(point) for point in self._points], {})
            for point in self._points:
                stored = found.pop(tap_output(point))
                # a graph of the last positions alone has fewer rows of logits
                expected = self._streams.value(point.name, index)[-len(stored) :]
                self.peaks[point.name] = max(self.peaks[point.name], self._peak(point, stored, expected))
                self._add(sums[point.name], point, stored, expected)
        return sums

    def _peak(self, point: Point, stored: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
        """Largest |value|. What overflowed counts as the reference's stored alike, and as beyond the largest number."""
        finite = np.isfinite(stored)
        largest = float(np.abs(stored[finite]).max(initial=0.0))
        if finite.all():
            return largest
        wanted = float(np.abs(expected).max(initial=0.0)) * (self._scale if point.scaled else 1.0)
        return max(largest, wanted, _INFINITE[self._dtype] if np.isinf(stored).any() else 0.0)

    def fed(self, session: MemorySession) -> dict[str, _Sums]:
        """Squares of what each half makes of the reference's stream; notes what halves add, and rounding."""
        sums = {point.name: _Sums() for point in self._points}
        for index, document in enumerate(self._streams.documents):
            feeds = {fed_input(point): self._stored(point, index) for point in self._points if point.name != LOGITS}
            feeds[ZEROS] = np.zeros_like(next(iter(feeds.values())))
            found = session.run(document.token_ids, [tap_output(point) for point in self._points], feeds)
            for point in self._points:
                stored = found.pop(tap_output(point))
                self._add(sums[point.name], point, stored, self._streams.value(point.name, index)[-len(stored) :])
            self._note_branches(index)
        return sums

    def _add(
        self, sums: _Sums, point: Point, stored: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]
    ) -> None:
        values = stored / np.float32(self._scale) if point.scaled else stored
        with np.errstate(invalid="ignore", over="ignore"):
            sums.add(values, expected)

    def _stored(self, point: Point, index: int) -> npt.NDArray[np.float32]:
        """The reference's values as the graph would hold them, within the format's range."""
        values = self._streams.value(point.name, index)
        scaled = values * np.float32(self._scale) if point.scaled else values
        largest = _LARGEST.get(self._dtype)
        return scaled if largest is None else scaled.clip(-largest, largest)

    def _note_branches(self, index: int) -> None:
        before: npt.NDArray[np.float32] | None = None
        for point in self._points:
            if point.name == LOGITS:
                # relative to the logits themselves, which are not computed once more for their squares
                self.roundings[LOGITS] = 2 * _UNIT_ROUNDOFF[self._dtype] ** 2 / 3
                continue
            value = self._streams.value(point.name, index)
            stream = before is not None and point.scaled
            added = value - before if stream and before is not None else value
            self.branches[point.name] += float(np.square(added, dtype=np.float64).sum())
            squares = float(np.square(value, dtype=np.float64).sum())
            if before is not None:
                squares += float(np.square(before, dtype=np.float64).sum()) if stream else squares
            self.roundings[point.name] += squares * _UNIT_ROUNDOFF[self._dtype] ** 2 / 3
            before = value


# half a unit in the last place, relative: https://en.wikipedia.org/wiki/Unit_roundoff
_UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def _measured(
    point: Point, own: Mapping[str, _Sums], fed: Mapping[str, _Sums], runner: _Runner, dtype: str
) -> Measured:
    peak = runner.peaks[point.name]
    branch = runner.branches[point.name]
    found = LayerPoint(
        point=point.name,
        layer=point.layer,
        cumulative=own[point.name].ratio(),
        injected=fed[point.name].ratio(branch or None),
        peak=peak,
        headroom_bits=math.log2(_CEILING[dtype] / peak) if peak > 0 else None,
    )
    rounding = runner.roundings[point.name] / (branch or 1.0)
    return Measured(point=point, found=found, rounding=rounding)
