"""A repository as a checkpoint: small files at once, weights when they are needed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from gemma_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from gemma_export.checkpoint.hashing import HashedFile
from gemma_export.checkpoint.hub.repository import open_repository
from gemma_export.checkpoint.hub.weights import HubWeights, checkpoint_files, hub_weights
from gemma_export.errors import CheckpointError
from gemma_export.progress import Progress

__all__ = ["check_cached", "download_weights", "open_hub_checkpoint"]

_SHA256_DIGITS = 64


def open_hub_checkpoint(
    repository: str, revision: str | None, *, weights: bool = True, progress: Progress | None = None
) -> Checkpoint:
    """Opens a repository: configuration and tokenizer are fetched, of the weights only the headers.

    Args:
        repository: ORG/NAME.
        revision: branch, tag, or commit of any length; None means main.
        weights: False leaves the weights alone (synthetic ones will take their place).
        progress: told of bytes received.

    Raises:
        MissingResourceError: repository, revision or network are not there, or may not be seen.
        ConfigError, CheckpointError: it is no checkpoint, or not what it says.
        OutputError, ResourceExhaustedError: the cache cannot be written.
    """
    opened = open_repository(repository, revision)
    small = checkpoint_files(opened)
    if weights and opened.offline and not {"tokenizer.json", "tokenizer.model"} & opened.names:
        raise opened.lacks("tokenizer.json", hint="Choose a repository that has one.")
    source = hub_weights(opened, progress) if weights else None
    opened.download(small, progress)
    opened.complete(replace=False)
    return dataclasses.replace(
        open_checkpoint(opened.directory, weights=False),
        source=source,
        name=repository.split("/")[1],
        repository=repository,
        revision=opened.commit,
        note=opened.note,
    )


def download_weights(checkpoint: Checkpoint, progress: Progress | None = None) -> Checkpoint:
    """The same checkpoint with weights that can be read; one that has them is returned as it is.

    Raises:
        GemmaExportError: as HubWeights.download.
    """
    if not isinstance(checkpoint.source, HubWeights):
        return checkpoint
    source = checkpoint.source.download(progress)
    return dataclasses.replace(checkpoint, source=source, files=(*checkpoint.files, *source.files))


def check_cached(files: Sequence[Path], hashed: Sequence[HashedFile]) -> None:
    """Holds what was read against the hash that the cache calls it by: a disk may have changed it since the download.

    Args:
        files: of a checkpoint; those that are no links into a Hub cache are left alone.
        hashed: the same files, in the same order.

    Raises:
        CheckpointError: a file that is not what it was; it is removed from the cache.
    """
    for path, found in zip(files, hashed, strict=True):
        blob = Path(os.readlink(path)) if path.is_symlink() else path
        named = blob.parent.name == "blobs" and len(blob.name) == _SHA256_DIGITS
        if named and blob.name != found.sha256:
            (path.parent / blob).unlink(missing_ok=True)
            raise CheckpointError(
                f"{path.name} in the Hub cache is damaged: expected SHA-256 {blob.name}, found {found.sha256}; it was "
                "removed from the cache",
                hint="Run the same command again: it fetches the file anew. If it happens again, check the disk.",
            )
