"""The files of a revision as the Hub lists them, read without trust."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from gemma_export.checkpoint.hub.client import HubClient
from gemma_export.checkpoint.hub.errors import not_the_hub
from gemma_export.checkpoint.hub.names import COMMIT, check_file_name, is_plain_name
from gemma_export.errors import CheckpointError

__all__ = ["Listing", "RepositoryFile", "read_listing"]

# SHA-256 of the content for LFS files, git's SHA-1 for others
_BLOB = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_LARGEST_FILE = 1 << 50
# the largest tokenizer of a Gemma has 33 MB; weights are bounded by the disk
_LARGEST_SMALL_FILE = 128 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepositoryFile:
    """A file that is known well enough to be fetched."""

    name: str
    # bytes
    size: int
    # its name in the cache: SHA-256 (64 digits) of an LFS file, else git's SHA-1 (40 digits)
    blob: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of one commit."""

    commit: str
    # name -> what the Hub says about it
    entries: Mapping[str, Mapping[str, Any]]

    def file(self, client: HubClient, name: str) -> RepositoryFile:
        """A listed file with size and hash; asked for on its own where the listing leaves them out.

        Raises:
            CheckpointError: a name no file should have, or a size no such file has.
        """
        if not is_plain_name(name):
            raise CheckpointError(
                f"{client.repository}: {name[:80]!r} is no name for a file of a checkpoint",
                hint="Do not export checkpoints from sources you do not trust.",
            )
        size, blob = _described(self.entries[name])
        if size is None or blob is None:
            size, blob = _asked(client, self.commit, name)
        if size > (_LARGEST_FILE if name.endswith(".safetensors") else _LARGEST_SMALL_FILE):
            raise CheckpointError(
                f"{client.repository}: {name} has {size} bytes, far more than such a file has",
                hint="This is not the file it claims to be.",
            )
        return RepositoryFile(name=name, size=size, blob=blob)


def read_listing(client: HubClient, revision: str) -> Listing:
    """Resolves a revision to its commit and lists the files of exactly that commit.

    Raises:
        GemmaExportError: as HubClient.model_info; or a listing that is hostile or not the Hub's.
    """
    info = client.model_info(revision)
    commit, siblings = info.get("sha"), info.get("siblings")
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit) or not isinstance(siblings, list):
        raise not_the_hub(client.page, "JSON that describes no repository")
    if COMMIT.fullmatch(revision) and commit != revision:
        raise not_the_hub(client.page, f"commit {commit} when asked for {revision}")
    entries = {}
    for sibling in siblings:
        if not isinstance(sibling, dict):
            raise not_the_hub(client.page, "JSON that describes no repository")
        entries[check_file_name(client.repository, sibling.get("rfilename"))] = sibling
    return Listing(commit=commit, entries=entries)


def _described(entry: Mapping[str, Any]) -> tuple[int | None, str | None]:
    lfs = entry.get("lfs")
    if isinstance(lfs, dict):
        return _size(lfs.get("size", entry.get("size"))), _blob(lfs.get("sha256", lfs.get("oid")))
    return _size(entry.get("size")), _blob(entry.get("blobId", entry.get("oid")))


def _asked(client: HubClient, commit: str, name: str) -> tuple[int, str]:
    """Size and hash from a file's headers: mirrors of the Hub may list names alone."""
    headers = client.file_headers(commit, name)
    etag = headers.get("x-linked-etag") or headers.get("etag") or ""
    length = headers.get("x-linked-size") or headers.get("content-length") or ""
    blob = _blob(etag.removeprefix("W/").strip('"'))
    size = _size(int(length)) if length.isdecimal() and len(length) < 20 else None
    if size is None or blob is None or headers.get("x-repo-commit", commit) != commit:
        raise not_the_hub(client.page, f"headers of {name} that name no size, hash and commit")
    return size, blob


def _size(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_FILE else None


def _blob(value: Any) -> str | None:
    return value if isinstance(value, str) and _BLOB.fullmatch(value) else None
