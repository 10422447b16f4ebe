"""Which implementation computes a reference: chosen by kind and by size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gemma_export.artifact import verify_folder
from gemma_export.errors import FolderError
from gemma_runtime.errors import GemmaRuntimeError
from gemma_runtime.manifest import Manifest, read_manifest
from gemma_validation.errors import FolderUnreadableError, ProviderUnavailableError, ValidationUsageError
from gemma_validation.reference.checkpoint import ReferenceCheckpoint, open_reference
from gemma_validation.reference.find import FoundReference
from gemma_validation.reference.folder_reference import FolderReference
from gemma_validation.reference.identity import check_checkpoint, check_folder
from gemma_validation.reference.source import ReferenceSource
from gemma_validation.reference.transformers_reference import TransformersReference

__all__ = ["choose_reference_provider", "open_source", "require_folder", "runs_whole"]

_KINDS = {"checkpoint": "a checkpoint", "golden": "a golden pack"}

# float32 weights up to which a model is run whole. Loading holds the checkpoint beside it and a bfloat16 copy follows:
# with torch's own 0.3 GB that stays far below the 4 GiB that a reference may take.
_WHOLE_BYTES = 1 << 30


def runs_whole(checkpoint: ReferenceCheckpoint) -> bool:
    """Whether all weights are held in memory; else layers are streamed."""
    return checkpoint.float32_bytes <= _WHOLE_BYTES


def open_source(
    found: FoundReference,
    directory: Path,
    manifest: Manifest,
    *,
    provider: str = "cpu",
    reference_provider: str | None = None,
) -> ReferenceSource:
    """Opens a reference that was found, once it is known to be of the export's model.

    Args:
        found: a checkpoint or a folder; golden packs are opened by gemma_validation.golden.
        directory: the exported folder.
        manifest: its manifest.
        provider: that the exported folder runs on.
        reference_provider: that another folder runs on; None takes `provider`, or what it runs on where it does not.

    Raises:
        MismatchError: it is of another model, tokenizer or vocabulary.
        ReferenceMissingError: it cannot be used.
        FolderUnreadableError: another folder's files are not those of its manifest: sizes, hashes, references.
        FolderUnreadableError, ProviderUnavailableError, MissingPackageError: of another folder; of its packages.
        ValidationUsageError: a provider for what is no folder.
    """
    require_folder(found, reference_provider)
    if found.kind == "folder":
        assert found.path is not None
        other = _manifest(found.path)
        check_folder(directory, manifest, found.path, other)
        _check_files(found.path)
        chosen = choose_reference_provider(found.name, other.providers, provider, reference_provider)
        return FolderReference(
            found.path, other, provider=chosen, name=found.name if chosen == provider else f"{found.name} on {chosen}"
        )
    assert found.kind == "checkpoint"
    checkpoint = open_reference(found, manifest)
    check_checkpoint(directory, manifest, found, checkpoint)
    if runs_whole(checkpoint):
        return TransformersReference(checkpoint)
    return _layered(checkpoint)


def require_folder(found: FoundReference, reference_provider: str | None) -> None:
    """Refuses a provider for a reference that onnxruntime does not run.

    Raises:
        ValidationUsageError: names what the reference is.
    """
    if reference_provider is not None and found.kind != "folder":
        raise ValidationUsageError(
            f"--reference-provider is for an exported folder as the reference, {found.name} is {_KINDS[found.kind]}",
            hint="Leave --reference-provider out, or give an exported folder with --reference.",
        )


def choose_reference_provider(name: str, providers: Sequence[str], provider: str, wanted: str | None) -> str:
    """Where another folder runs.

    Args:
        name: of the folder, for messages.
        providers: those of its manifest, at least one.
        provider: that the exported folder runs on.
        wanted: what the user asked for; None takes `provider` where the folder runs there, else its first.

    Raises:
        ProviderUnavailableError: it does not run on the one that was asked for.
    """
    if wanted is None:
        return provider if provider in providers else providers[0]
    if wanted not in providers:
        raise ProviderUnavailableError(
            f"the reference {name} runs on {', '.join(providers)}, not on {wanted}",
            hint=f"Choose --reference-provider {providers[0]}, or leave it out.",
        )
    return wanted


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
