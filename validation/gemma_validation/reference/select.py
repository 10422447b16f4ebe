"""Which implementation computes a reference: chosen by kind and by size."""

from __future__ import annotations

from pathlib import Path

from gemma_export.artifact import verify_folder
from gemma_export.errors import FolderError
from gemma_runtime.errors import GemmaRuntimeError
from gemma_runtime.manifest import Manifest, read_manifest
from gemma_validation.errors import FolderUnreadableError
from gemma_validation.reference.checkpoint import ReferenceCheckpoint, open_reference
from gemma_validation.reference.find import FoundReference
from gemma_validation.reference.folder_reference import FolderReference
from gemma_validation.reference.identity import check_checkpoint, check_folder
from gemma_validation.reference.source import ReferenceSource
from gemma_validation.reference.transformers_reference import TransformersReference

__all__ = ["open_source", "runs_whole"]

# float32 weights up to which a model is run whole. Loading holds the checkpoint beside it and a bfloat16 copy follows:
# with torch's own 0.3 GB that stays far below the 4 GiB that a reference may take.
_WHOLE_BYTES = 1 << 30


def runs_whole(checkpoint: ReferenceCheckpoint) -> bool:
    """Whether all weights are held in memory; else layers are streamed."""
    return checkpoint.float32_bytes <= _WHOLE_BYTES


def open_source(
    found: FoundReference, directory: Path, manifest: Manifest, *, provider: str = "cpu"
) -> ReferenceSource:
    """Opens a reference that was found, once it is known to be of the export's model.

    Args:
        found: a checkpoint or a folder; golden packs are opened by gemma_validation.golden.
        directory: the exported folder.
        manifest: its manifest.
        provider: that another folder runs on.

    Raises:
        MismatchError: it is of another model, tokenizer or vocabulary.
        ReferenceMissingError: it cannot be used.
        FolderUnreadableError: another folder's files are not those of its manifest: sizes, hashes, references.
        FolderUnreadableError, ProviderUnavailableError, MissingPackageError: of another folder; of its packages.
    """
    if found.kind == "folder":
        assert found.path is not None
        other = _manifest(found.path)
        check_folder(directory, manifest, found.path, other)
        _check_files(found.path)
        return FolderReference(found.path, other, provider=provider)
    assert found.kind == "checkpoint"
    checkpoint = open_reference(found, manifest)
    check_checkpoint(directory, manifest, found, checkpoint)
    if runs_whole(checkpoint):
        return TransformersReference(checkpoint)
    return _layered(checkpoint)


def _layered(checkpoint: ReferenceCheckpoint) -> ReferenceSource:
    # imports nothing heavy itself, but is not needed for most
    from gemma_validation.layered import LayeredReference

    return LayeredReference(checkpoint.config, name=checkpoint.name, weights=checkpoint.weight)


def _check_files(directory: Path) -> None:
    """What its manifest does not vouch for is no reference: a flipped bit would be taken for the truth."""
    try:
        verify_folder(directory)
    except FolderError as error:
        raise FolderUnreadableError(
            f"the reference {directory.name} is not what its manifest says: {error.message}", hint=error.hint
        ) from error


def _manifest(directory: Path) -> Manifest:
    try:
        return read_manifest(directory)
    except GemmaRuntimeError as error:
        raise FolderUnreadableError(f"{directory}: {error.message}", hint=error.hint) from error
