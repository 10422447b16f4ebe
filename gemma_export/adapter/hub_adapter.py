"""`--adapter`: a local folder, or a repository of the Hub."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gemma_export.adapter.adapter import CONFIG, PICKLE, WEIGHTS, Adapter, open_adapter, pickle_only
from gemma_export.checkpoint import HubRepository, check_revision, fetch, is_repository_id, meant_repository
from gemma_export.errors import MissingResourceError
from gemma_export.progress import Progress

__all__ = ["find_adapter"]


def find_adapter(text: str, progress: Progress | None = None) -> tuple[Adapter, str | None]:
    """Opens the adapter that `--adapter` names; what is there on the disk is never looked for on the Hub.

    Args:
        text: a folder, ORG/NAME, or ORG/NAME@REVISION with a branch, tag or commit.
        progress: told of bytes received.

    Returns:
        The adapter, and a line for the user where the Hub could not be asked.

    Raises:
        MissingResourceError: it is neither, or its files are not there.
        ConfigError, CheckpointError: its files are broken, or no LoRA that can be merged.
        UsageError: the revision can be none.
    """
    repository, _, revision = text.partition("@")
    if not is_repository_id(repository) and (meant := meant_repository(text)) is not None:
        name = "@".join(part for part in meant if part is not None)
        raise MissingResourceError(
            f"adapter {text[:200]} is an address, not a folder or ORG/NAME[@REVISION]", hint=f"Give --adapter {name}."
        )
    if Path(text).exists() or not is_repository_id(repository):
        return open_adapter(Path(text)), None
    if revision:
        check_revision(revision)
    fetched = fetch(repository, revision or None, _needed, progress, option="--adapter")
    adapter = open_adapter(fetched.directory)
    name = repository.split("/")[1]
    return dataclasses.replace(adapter, name=name, repository=repository, revision=fetched.commit), fetched.note


def _needed(repository: HubRepository) -> tuple[str, ...]:
    """The two files of an adapter; a repository without them is told apart by what it has."""
    if CONFIG not in repository.names:
        is_model = "config.json" in repository.names
        hint = "This is a whole model: export it with --checkpoint." if is_model else "It holds no PEFT adapter."
        raise repository.lacks(CONFIG, hint=hint)
    if WEIGHTS not in repository.names:
        if PICKLE in repository.names and repository.names_known:
            raise pickle_only(f"{repository.repository} at {repository.revision}")
        raise repository.lacks(WEIGHTS, hint="The adapter was saved without its weights.")
    return CONFIG, WEIGHTS
