"""A local checkpoint as a reference: its weights, and transformers' layers over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gemma_export.weights import Weight
from gemma_validation.artifact import ArtifactRunner
from gemma_validation.documents import Document
from gemma_validation.findings import GreedyDivergence
from gemma_validation.layered import LayeredReference
from gemma_validation.reference import (
    FoundReference,
    ReferenceCheckpoint,
    ReferenceSource,
    greedy_divergences,
    greedy_texts,
    open_reference,
)

__all__ = ["layers_of", "opened", "parting", "weights_of"]


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


def parting(
    source: ReferenceSource, runner: ArtifactRunner, documents: Sequence[Document], steps: int
) -> tuple[GreedyDivergence, ...]:
    """Where greedy text behind the documents leaves the reference's."""
    texts = greedy_texts(runner, documents, steps)
    source.prepare([text.document for text in texts])
    return greedy_divergences(source, texts, 0)
