"""Fetches one file into the cache: resumed where it stopped, held against size and hash before it counts as there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

from gemma_export.checkpoint.hub.backoff import Backoff, PassingError
from gemma_export.checkpoint.hub.cache import RepositoryCache
from gemma_export.checkpoint.hub.client import HubClient
from gemma_export.checkpoint.hub.errors import not_the_hub, wrong_content
from gemma_export.checkpoint.hub.listing import RepositoryFile
from gemma_export.errors import CheckpointError
from gemma_export.progress import Progress

__all__ = ["body_size", "download_file", "sent_from"]

_CHUNK_BYTES = 1 << 20
_REMOVED = "; what was there of it was removed from the cache"


def download_file(
    client: HubClient, cache: RepositoryCache, commit: str, file: RepositoryFile, progress: Progress
) -> None:
    """Makes a file's content part of the cache; the caller holds its lock.

    The partial file stays when the download breaks off or is interrupted; a content of the wrong size or hash does not.

    Raises:
        HubUnreachableError: the server kept failing, or something else answers.
        CheckpointError: the content is not what the Hub says it is.
        OutputError, ResourceExhaustedError: the cache cannot be written.
    """
    with cache.explained():
        if cache.content(commit, file) is None:
            partial = cache.partial(file)
            _fetch(client, commit, file, partial, progress)
            os.replace(partial, cache.blob(file))
        if not cache.linked(commit, file):
            cache.link(commit, file)


def _fetch(client: HubClient, commit: str, file: RepositoryFile, partial: Path, progress: Progress) -> None:
    """Fills the partial file; a resumed one that turns out wrong is fetched once more, from its first byte."""
    backoff = Backoff(client.host, progress)
    while True:
        resumed = _size(partial)
        try:
            digest = _receive(client, commit, file, partial, progress)
        except PassingError as failure:
            if _size(partial) > resumed:
                backoff.reset()
            backoff.wait(failure)
            continue
        except CheckpointError as error:
            held = _size(partial)
            partial.unlink(missing_ok=True)
            if not held:
                raise
            raise CheckpointError(f"{error.message}{_REMOVED}", hint=error.hint) from error
        if digest == file.blob:
            return
        partial.unlink()
        if not resumed:
            kind = "SHA-256" if len(file.blob) == 64 else "git's SHA-1"
            raise wrong_content(
                file.name, f"its content does not match {kind} {file.blob} of the Hub (found {digest}){_REMOVED}"
            )
        # what had been there before this run did not count either: the bar ends where it should
        progress.advance(-file.size)


def _receive(client: HubClient, commit: str, file: RepositoryFile, partial: Path, progress: Progress) -> str:
    """One attempt; returns the hash of the whole file, in the form of `file.blob`."""
    with partial.open("ab+") as target:
        done = target.seek(0, os.SEEK_END)
        if done > file.size:
            done = target.truncate(0)
        digest = _hash_of(target, file)
        if done < file.size:
            with client.stream(client.file_path(commit, file.name), start=done) as response:
                if done and sent_from(response, file) == 0:
                    # the server knows no ranges, and sends all of it again
                    target.truncate(0)
                    progress.advance(-done)
                    done, digest = 0, _new_hash(file)
                _check_range(response, file, done)
                # as they come, 64 kB or so: a chunk that waits to be filled is lost when the connection breaks
                for chunk in response.iter_bytes():
                    done += len(chunk)
                    if done > file.size:
                        raise wrong_content(file.name, f"the server sends more than the {file.size} bytes of the Hub")
                    target.write(chunk)
                    digest.update(chunk)
                    progress.advance(len(chunk))
            if done < file.size:
                raise PassingError(f"{file.name} ended after {done} of {file.size} bytes")
        target.flush()
        os.fsync(target.fileno())
    return str(digest.hexdigest())


def _check_range(response: Any, file: RepositoryFile, start: int) -> None:
    """Refuses an answer that is not this file's bytes from `start` on, before a byte of it is kept."""
    total, first = body_size(response), sent_from(response, file)
    if total not in (None, file.size) or "html" in response.headers.get("content-type", "").lower():
        where = str(response.url).partition("?")[0]
        if "html" in response.headers.get("content-type", "").lower():
            raise not_the_hub(where, f"an HTML page instead of {file.name}")
        raise wrong_content(file.name, f"expected {file.size} bytes as the Hub says, the server has {total}")
    if first != start:
        raise wrong_content(file.name, f"asked for bytes from {start} on, the server sends them from {first} on")


def body_size(response: Any) -> int | None:
    """Bytes of the whole file that an answer is a part of, where it says so."""
    text = response.headers.get("content-range", "").rpartition("/")[2] or response.headers.get("content-length", "")
    encoded = response.headers.get("content-encoding", "identity") != "identity"
    return int(text) if text.isdecimal() and len(text) < 20 and not encoded else None


def sent_from(response: Any, file: RepositoryFile) -> int:
    """The first byte that an answer holds."""
    if response.status_code != 206:
        return 0
    text = response.headers.get("content-range", "").removeprefix("bytes").strip().partition("-")[0]
    if not text.isdecimal() or len(text) > 20:
        raise wrong_content(file.name, "the server sends a part of it and does not say which")
    return int(text)


def _new_hash(file: RepositoryFile) -> Any:
    if len(file.blob) == 64:
        return hashlib.sha256()
    # git hashes a blob with its length before it: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def _hash_of(target: BinaryIO, file: RepositoryFile) -> Any:
    digest = _new_hash(file)
    target.seek(0)
    while chunk := target.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
