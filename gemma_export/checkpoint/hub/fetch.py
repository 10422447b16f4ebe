"""Any files of a repository, chosen by whoever asks: adapters, or whatever else is not a whole checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from gemma_export.checkpoint.hub.repository import HubRepository, open_repository
from gemma_export.progress import Progress

__all__ = ["FetchedFiles", "fetch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchedFiles:
    """Files of one commit on this machine."""

    # holds them under their names in the repository
    directory: Path
    repository: str
    # 40 hexadecimal digits
    commit: str
    names: tuple[str, ...]
    # that the Hub was not asked, if so, in a line for the user
    note: str | None


def fetch(
    repository: str,
    revision: str | None,
    needed: Callable[[HubRepository], Sequence[str]],
    progress: Progress | None = None,
    *,
    option: str = "--checkpoint",
) -> FetchedFiles:
    """Downloads some files of a repository into the Hub cache, or finds them there.

    Args:
        repository: ORG/NAME.
        revision: branch, tag, or commit of any length; None means main.
        needed: chooses among `names`; it may look into small files first with `path`, and raises `lacks` for what must
            be there and is not.
        progress: told of bytes received and of waiting.
        option: of the command line, which named the repository; for messages.

    Raises:
        MissingResourceError: repository, revision or network are not there, or may not be seen.
        CheckpointError: a file is not what the Hub says it is.
        OutputError, ResourceExhaustedError: the cache cannot be written.
    """
    opened = open_repository(repository, revision, progress, option=option)
    names = tuple(needed(opened))
    opened.download(names, progress)
    opened.complete(replace=True)
    return FetchedFiles(
        directory=opened.directory, repository=repository, commit=opened.commit, names=names, note=opened.note
    )
