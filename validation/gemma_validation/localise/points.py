"""The points of the residual stream at which an artifact and its reference can be compared.

The exporter gives these values the same names in every graph, whatever the precision and the kernels, so the mapping
from torch to ONNX is a matter of names; that every one of them exists is checked (`checked_points`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal

from gemma_validation.errors import FolderUnreadableError

__all__ = ["LOGITS", "Kind", "Point", "checked_points", "stream_points"]

Kind = Literal["embedding", "attention half", "MLP half", "final norm", "head"]
LOGITS = "logits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One value of the graph that the reference has too."""

    # as reports call it
    name: str
    # in the graph
    value: str
    layer: int | None
    # what lies between the point before it and this one
    kind: Kind
    # whether it is the stream, which a rescaled graph stores times 2^-k
    scaled: bool

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"{self.kind} of layer {self.layer}"


def stream_points(num_layers: int) -> tuple[Point, ...]:
    """All points in the order of the computation; each is computed from the one before it and the weights between."""
    points = [
        Point(
            name="embedding",
            value="model.embed_tokens.ScaledEmbedding",
            layer=None,
            kind="embedding",
            scaled=True,
        )
    ]
    halves: tuple[tuple[str, Kind], ...] = (("attn_residual", "attention half"), ("mlp_residual", "MLP half"))
    for layer in range(num_layers):
        for half, kind in halves:
            name = f"layers.{layer}.{half}"
            points.append(Point(name=name, value=name, layer=layer, kind=kind, scaled=True))
    points.append(Point(name="norm", value="model.norm.RMSNorm", layer=None, kind="final norm", scaled=False))
    points.append(Point(name=LOGITS, value=LOGITS, layer=None, kind="head", scaled=False))
    return tuple(points)


def checked_points(num_layers: int, values: Collection[str], graph: str) -> tuple[Point, ...]:
    """The points of a model of so many layers, each of which must be a value of the graph.

    Args:
        num_layers: of the model.
        values: names of everything that the graph's nodes compute.
        graph: its file, for the message.

    Raises:
        FolderUnreadableError: one is not; the message names it.
    """
    points = stream_points(num_layers)
    for point in points:
        if point.value not in values:
            raise FolderUnreadableError(
                f"{graph} computes no value {point.value!r}: the {point} cannot be compared with the reference",
                hint="Drift is localised in graphs of this release's exporter: export again, or leave --localise out.",
            )
    return points
