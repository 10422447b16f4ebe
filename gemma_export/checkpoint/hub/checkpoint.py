"""A repository as a checkpoint: small files at once, weights when they are needed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from gemma_export.checkpoint.checkpoint import GENERATION_CONFIG, Checkpoint, open_checkpoint
from gemma_export.checkpoint.hashing import HashedFile
from gemma_export.checkpoint.hub.repository import HubRepository
from gemma_export.checkpoint.hub.weights import HubWeights, checkpoint_files, hub_weights
from gemma_export.checkpoint.json_file import read_json
from gemma_export.errors import CheckpointError
from gemma_export.progress import Progress

__all__ = ["check_cached", "download_weights", "open_hub_checkpoint"]

_SHA256_DIGITS = 64
# what nearly every checkpoint has beside its configuration and weights, and an export uses
_USUAL = (GENERATION_CONFIG, "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
_TEMPLATES = ("chat_template.jinja", "chat_template.json")


def open_hub_checkpoint(opened: HubRepository, *, weights: bool = True, progress: Progress | None = None) -> Checkpoint:
    """Opens a repository's checkpoint: configuration and tokenizer are fetched, of the weights only the headers.

    Args:
        opened: the repository at one commit.
        weights: False leaves the weights alone (synthetic ones will take their place).
        progress: told of bytes received.

    Raises:
        MissingResourceError: the network is not there, or a file may not be seen.
        ConfigError, CheckpointError: it is no checkpoint, or not what it says.
        OutputError, ResourceExhaustedError: the cache cannot be written.
    """
    small = checkpoint_files(opened)
    if weights and opened.offline and not {"tokenizer.json", "tokenizer.model"} & opened.names:
        raise opened.lacks("tokenizer.json", hint="Choose a repository that has one.")
    source = hub_weights(opened, progress) if weights else None
    opened.download(small, progress)
    opened.complete(replace=False)
    checkpoint = open_checkpoint(opened.directory, weights=False)
    return dataclasses.replace(
        checkpoint,
        source=source,
        name=opened.repository.split("/")[1],
        repository=opened.repository,
        revision=opened.commit,
        note=_note(opened, checkpoint),
    )


def _note(opened: HubRepository, checkpoint: Checkpoint) -> str | None:
    """That the Hub was not asked; and which files an export goes without because nobody knows whether there are any."""
    if opened.note is None or opened.names_known:
        return opened.note
    absent = [name for name in _USUAL if name not in opened.names]
    if not {*_TEMPLATES} & opened.names and "tokenizer_config.json" in opened.names:
        # the older place of a template
        inline = read_json(checkpoint.tokenizer_files["tokenizer_config.json"]).get("chat_template")
        absent += [] if inline else [_TEMPLATES[0]]
    if not absent:
        return opened.note
    return (
        f"{opened.note}. It has no {', '.join(absent)}: where the repository has them this export differs from one "
        "made with a connection"
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
        CheckpointError: a file that is not what it was; it is removed from the cache, where that may be written.
    """
    for path, found in zip(files, hashed, strict=True):
        blob = Path(os.readlink(path)) if path.is_symlink() else path
        named = blob.parent.name == "blobs" and len(blob.name) == _SHA256_DIGITS
        if named and blob.name != found.sha256:
            try:
                (path.parent / blob).unlink(missing_ok=True)
                removed, hint = (
                    "; it was removed from the cache",
                    "Run the same command again: it fetches the file anew.",
                )
            except OSError as error:
                removed, hint = "", f"Remove {path.parent / blob} ({error.strerror}), then run the same command again."
            raise CheckpointError(
                f"{path.name} in the Hub cache is damaged: expected SHA-256 {blob.name}, found {found.sha256}{removed}",
                hint=f"{hint} If it happens again, check the disk.",
            )
