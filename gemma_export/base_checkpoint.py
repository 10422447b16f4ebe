"""Which checkpoint a request means: built in, local, on the Hub, or a variant's shapes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemma_export.checkpoint import (
    Checkpoint,
    builtin_checkpoint,
    check_revision,
    is_repository_id,
    meant_repository,
    open_checkpoint,
    open_hub_checkpoint,
    open_repository,
)
from gemma_export.errors import HubUnreachableError, MissingResourceError, NotTheHubError, UsageError
from gemma_export.families import FAMILIES
from gemma_export.progress import Progress
from gemma_export.request import ExportRequest
from gemma_export.variants import Variant

__all__ = ["base_checkpoint", "released_config"]


def base_checkpoint(request: ExportRequest, variant: Variant | None, progress: Progress | None) -> Checkpoint:
    """Where config, weights and tokenizer come from; a source of None means synthetic weights."""
    synthetic = request.synthetic_seed is not None
    if request.revision is not None:
        check_revision(request.revision)
    if request.checkpoint is not None:
        return _given_checkpoint(request, progress)
    assert variant is not None
    if variant.repository is None:
        _refuse_revision(request, "the built-in model has none")
        return builtin_checkpoint(variant.name, weights=not synthetic)
    if synthetic:
        _refuse_revision(request, "synthetic weights of a variant come from no repository")
        return Checkpoint(config=released_config(variant), source=None)
    revision = request.revision or variant.revision
    opened = open_repository(variant.repository, revision, progress)
    return _with_tokenizer(open_hub_checkpoint(opened, progress=progress))


def _given_checkpoint(request: ExportRequest, progress: Progress | None) -> Checkpoint:
    """A local folder, or else a repository: what is there on the disk is never looked for on the Hub."""
    assert request.checkpoint is not None
    folder, weights = Path(request.checkpoint), request.synthetic_seed is None
    text = request.checkpoint if isinstance(request.checkpoint, str) else folder.as_posix()
    if folder.exists():
        _refuse_revision(request, f"{text} is a local path")
        checkpoint = open_checkpoint(folder, weights=weights)
    elif is_repository_id(text):
        try:
            opened = open_repository(text, request.revision, progress)
        except NotTheHubError:
            raise
        except HubUnreachableError as error:
            # who meant a folder does not care for the network
            raise type(error)(f"{error.message}; nor is there a local folder {text}", hint=error.hint) from error
        checkpoint = open_hub_checkpoint(opened, weights=weights, progress=progress)
    else:
        raise MissingResourceError(
            f"checkpoint {text} does not exist as a local folder, and is no Hub repository, which is called ORG/NAME",
            hint=_meant(text)
            or "Give the folder that holds config.json and the safetensors files, or a name like google/gemma-2b.",
        )
    return checkpoint if not weights else _with_tokenizer(checkpoint)


def _meant(text: str) -> str | None:
    meant = meant_repository(text)
    if meant is None:
        return None
    name, revision = meant
    return f"Give the repository's name: --checkpoint {name}{f' --revision {revision}' if revision else ''}."


def _refuse_revision(request: ExportRequest, why: str) -> None:
    if request.revision is not None:
        raise UsageError(
            f"--revision {request.revision} names a revision of a Hub repository, but {why}",
            hint="Leave --revision out, or give --checkpoint ORG/NAME.",
        )


def _with_tokenizer(checkpoint: Checkpoint) -> Checkpoint:
    if not checkpoint.has_tokenizer:
        whole = f"{checkpoint.repository}, downloaded with `hf download`" if checkpoint.repository else "the checkpoint"
        raise MissingResourceError(
            f"{checkpoint.name}: no tokenizer: neither tokenizer.json nor tokenizer.model is there",
            hint=f"Copy the tokenizer files of the original model into the folder of {whole}.",
        )
    return checkpoint


def released_config(variant: Variant) -> dict[str, Any]:
    """The config.json of a released variant: its sizes and its family's constants."""
    family = FAMILIES[variant.family]
    return {
        "model_type": family.model_type,
        **dict(variant.architecture),
        **family.constants,
        **dict(variant.constants),
    }
