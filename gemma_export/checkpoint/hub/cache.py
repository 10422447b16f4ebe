"""The ordinary Hub cache, as every program of the Hub reads and writes it.

    models--ORG--NAME/blobs/HASH            contents; HASH.incomplete while they are fetched
    models--ORG--NAME/snapshots/COMMIT/NAME links to them
    models--ORG--NAME/refs/REVISION         the commit that a branch or tag was

Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gemma_export.checkpoint.hub.library import HubSettings
from gemma_export.checkpoint.hub.listing import RepositoryFile
from gemma_export.checkpoint.hub.names import COMMIT
from gemma_export.checkpoint.json_file import read_json
from gemma_export.errors import GemmaExportError, InputError, OutputError, ResourceExhaustedError
from gemma_export.progress import Progress, format_bytes

__all__ = ["RepositoryCache"]

# seconds of waiting for a lock that need no explanation
_BRIEFLY = 0.5
# users who share a cache may wait for each other
_SHARED_LOCK = 0o664
_RIGHTS = "Correct its rights, or set HF_HOME to a folder that you may write to."
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class RepositoryCache:
    """The cache of one repository.

    Args:
        repository: ORG/NAME.
        settings: where the cache is.
    """

    def __init__(self, repository: str, settings: HubSettings) -> None:
        self._root = settings.cache
        self._symlinks = settings.symlinks
        self._name = "--".join(("models", *repository.split("/")))
        self._folder = self._root / self._name

    def snapshot(self, commit: str) -> Path:
        """The folder of a commit's files, which may not exist."""
        return self._folder / "snapshots" / commit

    def partial(self, file: RepositoryFile) -> Path:
        """Where a file lies while it is fetched; it stays when the download is interrupted."""
        return self._folder / "blobs" / f"{file.blob}.incomplete"

    def blob(self, file: RepositoryFile) -> Path:
        """Where a file's content lies once it is whole."""
        return self._folder / "blobs" / file.blob

    def content(self, commit: str, file: RepositoryFile) -> Path | None:
        """The file if it is cached in its right size, for this commit or another."""
        for path in (self.snapshot(commit) / file.name, self.blob(file)):
            try:
                if path.stat().st_size == file.size:
                    return path
            except OSError:
                continue
        return None

    def linked(self, commit: str, file: RepositoryFile) -> bool:
        """Whether a commit's snapshot has the file in its right size."""
        return self.content(commit, file) == self.snapshot(commit) / file.name

    def missing_bytes(self, file: RepositoryFile) -> int:
        """What is yet to be fetched of a file that is not cached."""
        try:
            return max(file.size - self.partial(file).stat().st_size, 0)
        except OSError:
            return file.size

    def names(self, commit: str) -> frozenset[str]:
        """Files of a snapshot that are really there, links to nothing left out.

        Raises:
            OutputError: the cache may not be read.
        """
        folder = self.snapshot(commit)
        with self._readable():
            # rglob would pass over what may not be read
            found = [Path(place, name) for place, _, names in os.walk(folder, onerror=_raise) for name in names]
            return frozenset(path.relative_to(folder).as_posix() for path in found if path.is_file())

    def listed(self, commit: str) -> frozenset[str] | None:
        """Every file of a commit, where its listing is in the cache: ours, or that of another program of the Hub."""
        for path in (self._names_file(commit), self._folder / "trees" / f"{commit}.json"):
            try:
                files = read_json(path).get("files")
            except InputError:
                # a later release's format, or none
                continue
            if isinstance(files, dict):
                return frozenset(files)
        return None

    def remember_names(self, commit: str, names: Iterable[str]) -> None:
        """Notes every file of a commit, so that without a network it is known what the repository has not."""
        path = self._names_file(commit)
        if not path.exists():
            # beside the listings of huggingface_hub, which hold more than we are told, and under another name
            _put_quietly(path, json.dumps({"files": dict.fromkeys(sorted(names))}, indent=1))

    def _names_file(self, commit: str) -> Path:
        return self._folder / "trees" / f"{commit}.names.json"

    def commit_of(self, revision: str) -> str | None:
        """The cached commit of a branch, a tag, or a commit of any length.

        Raises:
            OutputError: the cache may not be read.
        """
        with self._readable():
            try:
                commit = (self._folder / "refs" / revision).read_text(encoding="ascii").strip()
            except PermissionError:
                raise
            except (OSError, ValueError):
                commit = ""
            if COMMIT.fullmatch(commit):
                return commit
            snapshots = self._folder / "snapshots"
            known = [path.name for path in snapshots.iterdir() if path.is_dir()] if snapshots.is_dir() else []
        # seven digits are the shortest commit that git shows
        found = [name for name in known if COMMIT.fullmatch(name) and name.startswith(revision) and len(revision) >= 7]
        return found[0] if len(found) == 1 else None

    def prepare(self, needed_bytes: int) -> None:
        """Makes the folders and refuses a download that cannot fit.

        Raises:
            OutputError: the cache may not be written.
            ResourceExhaustedError: fewer than `needed_bytes` bytes are free.
        """
        with self.explained():
            (self._folder / "blobs").mkdir(parents=True, exist_ok=True)
            (self._root / ".locks" / self._name).mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free
        if free < needed_bytes:
            raise ResourceExhaustedError(
                f"not enough disk space for the download: {format_bytes(needed_bytes)} ({needed_bytes:,} bytes) "
                f"needed, {format_bytes(free)} ({free:,} bytes) free at {self._root}",
                hint="Free some space, or move the Hub cache to another disk with HF_HOME.",
            )

    def device(self) -> int | None:
        """Which file system the cache is on."""
        return next((os.stat(place).st_dev for place in (self._root, *self._root.parents) if place.exists()), None)

    @contextmanager
    def locked(self, file: RepositoryFile, progress: Progress) -> Iterator[bool]:
        """Holds the file against other programs; True after waiting for one that was fetching it."""
        import filelock

        waited = False

        path = self._root / ".locks" / self._name / f"{file.blob}.lock"
        lock: filelock.BaseFileLock = filelock.FileLock(path, mode=_SHARED_LOCK)
        with self.explained():
            try:
                lock.acquire(timeout=_BRIEFLY)
            except NotImplementedError:
                # a file system without locks of its own
                lock = filelock.SoftFileLock(path, mode=_SHARED_LOCK)
                lock.acquire()
            except filelock.Timeout:
                progress.start(0, f"waiting for another program that fetches {file.name}")
                lock.acquire()
                waited = True
        try:
            yield waited
        finally:
            lock.release()

    def link(self, commit: str, file: RepositoryFile) -> None:
        """Puts a whole content into a commit's snapshot."""
        pointer, blob = self.snapshot(commit) / file.name, self.blob(file)
        with self.explained():
            pointer.parent.mkdir(parents=True, exist_ok=True)
            temporary = pointer.with_name(f".{pointer.name}.{os.getpid()}")
            try:
                if not self._symlinks:
                    raise OSError(errno.ENOTSUP, "links are switched off")
                os.symlink(os.path.relpath(blob, pointer.parent), temporary)
            except OSError:
                # Windows without developer mode, file systems without links: the file itself goes there
                os.replace(blob, pointer)
            else:
                os.replace(temporary, pointer)

    def remember(self, revision: str, commit: str, *, replace: bool) -> None:
        """Notes which commit a branch or tag is, for the day without a network."""
        reference = self._folder / "refs" / revision
        if revision == commit or (not replace and reference.exists()):
            return
        _put_quietly(reference, commit)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turns the operating system's refusal to write the cache into an error for users."""
        try:
            yield
        except OSError as error:
            raise self._refusal(error) from error

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turns the operating system's refusal to read the cache into an error for users."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"the Hub cache {self._root} cannot be read: {error.strerror or error}", hint=_RIGHTS
            ) from error

    def _refusal(self, error: OSError) -> GemmaExportError:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            return ResourceExhaustedError(
                f"the Hub cache {self._root}: {reason}",
                hint="Free some space, or move the cache to another disk with HF_HOME; the download then resumes.",
            )
        return OutputError(
            f"the Hub cache {self._root} cannot be written: {reason}",
            hint=_RIGHTS,
        )


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _put_quietly(path: Path, text: str) -> None:
    """Writes a note of the cache. A complete cache may be read-only; a later run without a network then knows less."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        return
