"""A folder against a checkpoint, point by point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gemma_runtime.manifest import Manifest
from gemma_validation.documents import Document
from gemma_validation.errors import MismatchError
from gemma_validation.findings import Localisation
from gemma_validation.layered import LayeredReference
from gemma_validation.localise.culprit import conclude
from gemma_validation.localise.measure import measure_points
from gemma_validation.localise.streams import ReferenceStreams, excerpts

__all__ = ["localise"]


def localise(
    directory: Path,
    manifest: Manifest,
    reference: LayeredReference,
    documents: Sequence[Document],
    *,
    provider: str,
    window: int = 0,
) -> Localisation:
    """Error at every point of the residual stream, and the half of a layer that stands out, if one does.

    Args:
        directory: an exported folder.
        manifest: of it.
        reference: the checkpoint's model, not prepared for anything else; it is used up and closed.
        documents: text; up to 128 positions of it are used, and one of them beyond the window where there is one.
        provider: that runs the artifact: "cpu", "cuda" or "directml".
        window: the largest of the layers', 0 where none has one.

    Memory: the reference's needs one layer in float32, then the artifact's its weights.

    Raises:
        MismatchError: folder and checkpoint are of different sizes.
        FolderUnreadableError: a graph does not load, or lacks a point.
        MissingPackageError, ProviderUnavailableError: something is not installed, or does not start.
        GemmaExportError: a weight cannot be read.
    """
    layers = len({state.layer for state in manifest.graph("main").state})
    if (layers, manifest.vocab_size) != (reference.stack.num_layers, reference.vocab_size):
        raise MismatchError(
            f"{directory.name} has {layers} layers and {manifest.vocab_size} tokens, {reference.about.name} has "
            f"{reference.stack.num_layers} and {reference.vocab_size}",
            hint="Give the checkpoint that this folder was exported from.",
        )
    try:
        values = (2 * layers + 2) * reference.stack.hidden_size + reference.vocab_size
        streams = ReferenceStreams(reference, excerpts(documents, window=window, values=values))
        return conclude(measure_points(directory, manifest, streams, num_layers=layers, provider=provider), manifest)
    finally:
        reference.close()
