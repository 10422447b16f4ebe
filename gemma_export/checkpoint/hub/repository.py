"""A repository at one commit: online, or its cached copy when there is no network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from gemma_export.checkpoint.hub.cache import RepositoryCache
from gemma_export.checkpoint.hub.client import HubClient
from gemma_export.checkpoint.hub.download import body_size, download_file, sent_from
from gemma_export.checkpoint.hub.errors import incomplete_cache, not_the_hub, wrong_content
from gemma_export.checkpoint.hub.library import hub_settings
from gemma_export.checkpoint.hub.listing import Listing, RepositoryFile, read_listing
from gemma_export.errors import CheckpointError, GemmaExportError, HubUnreachableError, NotTheHubError
from gemma_export.progress import NullProgress, Progress

__all__ = ["HubRepository", "open_repository"]

_DEFAULT_REVISION = "main"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Online:
    client: HubClient
    listing: Listing


class HubRepository:
    """The files of one commit.

    Args:
        repository: ORG/NAME.
        revision: as asked for.
        commit: 40 hexadecimal digits.
        cache: where its files lie.
        online: None when only the cache is left.
        reason: why only the cache is left.
        remedy: what may bring the connection back, where one was tried.
        option: of the command line, which named the repository.
    """

    def __init__(
        self,
        *,
        repository: str,
        revision: str,
        commit: str,
        cache: RepositoryCache,
        online: _Online | None,
        option: str,
        reason: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.repository = repository
        self.revision = revision
        self.commit = commit
        self._cache = cache
        self._online = online
        self._option = option
        self._reason = reason
        self._remedy = remedy
        self._present = frozenset[str]() if online is not None else cache.names(commit)
        # every file of the commit, as far as that is known
        listed = frozenset(online.listing.entries) if online is not None else cache.listed(commit)
        self.names = self._present | (listed or frozenset())
        # whether that is all of them
        self.names_known = listed is not None

    @property
    def offline(self) -> bool:
        """Whether only the cache is left."""
        return self._online is None

    @property
    def directory(self) -> Path:
        """The folder of this commit's files in the cache."""
        return self._cache.snapshot(self.commit)

    @property
    def note(self) -> str | None:
        """What a user must know: that the Hub was not asked."""
        if self._reason is None:
            return None
        return f"{self._reason}: using the cached copy of {self.repository} at commit {self.commit}"

    def lacks(self, what: str, *, hint: str) -> GemmaExportError:
        """The error for a file that must be there and is not; `hint` is for a repository that really lacks it."""
        if self._reason is not None:
            return incomplete_cache(
                self.repository,
                self.revision,
                self._reason,
                f"no {what}",
                remedy=self._remedy,
                option=self._option,
            )
        return CheckpointError(f"{self.repository} at {self.revision} has no {what}", hint=hint)

    def path(self, name: str, progress: Progress | None = None) -> Path:
        """A file of the commit, fetched if it is not cached.

        Raises:
            GemmaExportError: it is not there, or cannot be had.
        """
        self.download([name], progress)
        return self.directory / name

    def missing(self, names: Iterable[str]) -> list[RepositoryFile]:
        """The files that are not cached, or not in their right size."""
        if self._online is None:
            absent = sorted(set(names) - self._present)
            if absent:
                raise self.lacks(absent[0], hint=f"Check {self._option}.")
            return []
        files = [self._file(name) for name in names]
        return [file for file in files if self._cache.content(self.commit, file) is None]

    def download_bytes(self, names: Iterable[str]) -> int:
        """Bytes that `download` would move; what an interrupted download left does not count."""
        return sum(self._cache.missing_bytes(file) for file in self.missing(names))

    def download(self, names: Sequence[str], progress: Progress | None = None) -> None:
        """Makes all of these files lie in `directory`, each in the size and with the hash that the Hub says.

        Raises:
            ResourceExhaustedError: they do not fit on the disk, which is known before the first is fetched.
            GemmaExportError: as `download_file`.
        """
        missing = self.missing(names)
        if self._online is None:
            return
        progress = progress or NullProgress()
        files = [file for file in map(self._file, names) if not self._cache.linked(self.commit, file)]
        total = sum(self._cache.missing_bytes(file) for file in missing)
        if files:
            # a cache that has all of them may be read-only
            self._cache.prepare(total)
        label = f"downloading {self.repository}"
        if missing:
            progress.start(total, label)
        try:
            for file in files:
                with self._cache.locked(file, progress) as waited:
                    if waited:
                        progress.start(self.download_bytes(names), label)
                    download_file(self._online.client, self._cache, self.commit, file, progress)
        finally:
            if missing:
                progress.finish()

    def complete(self, *, replace: bool) -> None:
        """Notes the revision's commit for offline use.

        Args:
            replace: False leaves an older note alone, for not all of this commit is here.
        """
        if self._online is not None:
            self._cache.remember_names(self.commit, self.names)
            self._cache.remember(self.revision, self.commit, replace=replace)

    def size(self, name: str) -> int:
        """Bytes of a file, cached or not.

        Raises:
            GemmaExportError: it is not there.
        """
        if self._online is not None:
            return self._file(name).size
        self.missing([name])
        return (self.directory / name).stat().st_size

    def device(self) -> int | None:
        """Which file system the cache is on."""
        return self._cache.device()

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Some bytes of a file without fetching all of it.

        Raises:
            GemmaExportError: they cannot be had.
        """
        if self._online is None:
            return _read(self.directory / name, start, stop)
        file = self._file(name)
        stop = min(stop, file.size)
        cached = self._cache.content(self.commit, file)
        if cached is not None:
            return _read(cached, start, stop)
        client = self._online.client
        return client.patiently(lambda: self._read_range(client, file, start, stop))

    def _read_range(self, client: HubClient, file: RepositoryFile, start: int, stop: int) -> bytes:
        with client.stream(client.file_path(self.commit, file.name), start=start, stop=stop) as response:
            total, first = body_size(response), sent_from(response, file)
            if "html" in response.headers.get("content-type", "").lower():
                raise not_the_hub(str(response.url).partition("?")[0], f"an HTML page instead of {file.name}")
            if total not in (None, file.size) or first not in (0, start):
                raise wrong_content(file.name, f"expected {file.size} bytes as the Hub says, the server has {total}")
            body = bytearray()
            # a server that knows no ranges sends the file from its start: the rest of it is not waited for
            for chunk in response.iter_bytes(64 << 10):
                body += chunk
                if first + len(body) >= stop:
                    break
        return bytes(body[start - first : stop - first])

    def _file(self, name: str) -> RepositoryFile:
        assert self._online is not None
        if name not in self.names:
            raise self.lacks(name, hint=f"Check {self._option} and its revision.")
        return self._online.listing.file(self._online.client, name)


def open_repository(
    repository: str, revision: str | None = None, progress: Progress | None = None, *, option: str = "--checkpoint"
) -> HubRepository:
    """Resolves a revision to its commit and lists its files; falls back to the cache when the Hub cannot be asked.

    Args:
        repository: ORG/NAME.
        revision: branch, tag, or commit of any length; None means main.
        progress: told of waiting.
        option: of the command line, which named it; for messages.

    Raises:
        MissingResourceError: there is no such repository or revision, it may not be seen, or neither Hub nor cache
            can be asked.
        CheckpointError: the listing is hostile.
        OutputError: the cache may not be read.
    """
    revision = revision or _DEFAULT_REVISION
    settings = hub_settings()
    cache = RepositoryCache(repository, settings)

    def cached(reason: str, remedy: str | None = None) -> HubRepository:
        commit = cache.commit_of(revision)
        if commit is None:
            what = "nothing of this revision is cached"
            raise incomplete_cache(repository, revision, reason, what, remedy=remedy, option=option)
        return HubRepository(
            repository=repository,
            revision=revision,
            commit=commit,
            cache=cache,
            online=None,
            option=option,
            reason=reason,
            remedy=remedy,
        )

    if settings.offline:
        return cached("offline mode (HF_HUB_OFFLINE) is on")
    client = HubClient(repository, settings, progress)
    try:
        listing = read_listing(client, revision)
    except HubUnreachableError as error:
        if isinstance(error, NotTheHubError) and cache.commit_of(revision) is None:
            raise
        return cached(f"the Hub was not reached ({error.message})", error.hint)
    return HubRepository(
        repository=repository,
        revision=revision,
        commit=listing.commit,
        cache=cache,
        online=_Online(client=client, listing=listing),
        option=option,
    )


def _read(path: Path, start: int, stop: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}", hint="Check the disk.") from error
