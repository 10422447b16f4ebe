"""A local checkpoint as a reference: its weights, and transformers' layers over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gemma_export.weights import Weight
from gemma_validation.layered import LayeredReference
from gemma_validation.reference import FoundReference, ReferenceCheckpoint, open_reference

__all__ = ["layers_of", "opened", "weights_of"]


def opened(directory: Path) -> ReferenceCheckpoint:
    """The checkpoint of a folder."""
    return open_reference(FoundReference(kind="checkpoint", path=directory, name=directory.name))


def weights_of(directory: Path) -> Callable[[str], Weight]:
    """Name -> lazy weight."""
    return opened(directory).weight


def layers_of(directory: Path, *, name: str | None = None) -> LayeredReference:
    """A layer at a time."""
    checkpoint = opened(directory)
    return LayeredReference(checkpoint.config, name=name or checkpoint.name, weights=checkpoint.weight)
