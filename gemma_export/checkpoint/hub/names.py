"""What a repository, a revision and a file of a repository may be called. Nothing here asks the Hub."""

from __future__ import annotations

import difflib
import re

from gemma_export.errors import CheckpointError, UsageError
from gemma_export.variants import VARIANTS

__all__ = [
    "COMMIT",
    "check_file_name",
    "check_revision",
    "is_plain_name",
    "is_repository_id",
    "meant_repository",
    "nearest_repository",
]

# a full commit, in the only form that the Hub answers with
COMMIT = re.compile(r"[0-9a-f]{40}")
# ORG/NAME. Source: https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/utils/_validators.py
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
# characters that git allows in no reference (https://git-scm.com/docs/git-check-ref-format)
_NEVER_IN_REVISIONS = set(" ~^:?*[\\")
_LONGEST_REVISION, _LONGEST_FILE_NAME = 250, 4096


def is_repository_id(text: str) -> bool:
    """Whether a text has the form ORG/NAME of a Hub repository."""
    parts = text.split("/")
    well_formed = len(parts) == 2 and all(_PART.fullmatch(part) for part in parts)
    # two dashes separate the parts in the cache's folder names
    return well_formed and "--" not in text and ".." not in text and not text.endswith(".git")


def meant_repository(text: str) -> tuple[str, str | None] | None:
    """ORG/NAME and revision of a text that is none, but says them: an address of the Hub, or ORG/NAME@REVISION."""
    address = re.fullmatch(
        r"https?://[^/]+/(?P<name>[^/]+/[^/?#]+)(?:/(?:tree|blob)/(?P<revision>[^/?#]+).*|[/?#].*)?", text
    )
    name, _, revision = text.partition("@")
    if address is not None:
        name, revision = address["name"], address["revision"] or ""
    elif not revision:
        return None
    return (name, revision or None) if is_repository_id(name) else None


def check_revision(revision: str) -> None:
    """Refuses what can be no branch, tag or commit; the name also becomes a path in the cache.

    Raises:
        UsageError: names the revision.
    """
    parts = revision.split("/")
    possible = (
        0 < len(revision) <= _LONGEST_REVISION
        and revision.isprintable()
        and not set(revision) & _NEVER_IN_REVISIONS
        and not revision.startswith("-")
        and ".." not in revision
        and all(part and not part.startswith(".") and not part.endswith((".", ".lock")) for part in parts)
    )
    if not possible:
        raise UsageError(
            f"--revision {revision[:80]!r} can be no branch, tag or commit",
            hint="Give a branch, a tag, or a commit in hexadecimal; the default is main.",
        )


def check_file_name(repository: str, name: object) -> str:
    """A name from a repository's listing, once it is known that it leads nowhere else.

    Raises:
        CheckpointError: an absolute path, a way out of the repository, or no name at all.
    """
    if isinstance(name, str) and 0 < len(name) <= _LONGEST_FILE_NAME:
        parts = name.split("/")
        inside = not {"", ".", ".."} & set(parts) and "\\" not in name and not re.match(r"[A-Za-z]:", name)
        if inside and all(ord(char) >= 32 and char != "\x7f" for char in name):
            return name
    raise CheckpointError(
        f"{repository} lists a file called {str(name)[:80]!r}, which leads out of the repository",
        hint="Do not export checkpoints from sources you do not trust.",
    )


def is_plain_name(name: str) -> bool:
    """Whether a name is one that every file system takes as it stands; what we fetch is called so."""
    return re.fullmatch(r"(?:[\w-][\w. -]*/)*[\w-][\w. -]*", name, re.ASCII) is not None


def nearest_repository(repository: str) -> str | None:
    """The repository of a released variant that is spelled most alike."""
    known = {variant.repository.lower(): variant.repository for variant in VARIANTS.values() if variant.repository}
    near = difflib.get_close_matches(repository.lower(), list(known), n=1, cutoff=0.6)
    return known[near[0]] if near and near[0] != repository.lower() else None
