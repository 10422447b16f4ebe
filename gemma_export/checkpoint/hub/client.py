"""One repository over HTTP: bounded answers, and every failure either passing (`PassingError`) or a typed error.

The token goes to the endpoint's own origin only: redirects are followed here, hop by hop, and leave it behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from gemma_export import __version__
from gemma_export.checkpoint.hub.backoff import Backoff, PassingError
from gemma_export.checkpoint.hub.errors import (
    gated,
    no_repository,
    no_revision,
    not_the_hub,
    refused,
    refused_elsewhere,
)
from gemma_export.checkpoint.hub.library import HubSettings, http_error, session
from gemma_export.checkpoint.json_file import unique_keys
from gemma_export.errors import CheckpointError, GemmaExportError, MissingResourceError
from gemma_export.progress import NullProgress, Progress

__all__ = ["HubClient"]

# seconds without a byte before an attempt counts as failed
_TIMEOUT = 20.0
_MOST_REDIRECTS = 10
# a listing of 50,000 files has about 10 MB
_LARGEST_ANSWER = 32 << 20
_CHUNK_BYTES = 1 << 20
_PASSING_STATUS = (408, 429)
_DEFAULT_PORTS = {"http": 80, "https": 443}

T = TypeVar("T")


class HubClient:
    """Asks the Hub about one repository.

    Args:
        repository: ORG/NAME.
        settings: endpoint and token.
        progress: told of waiting.
    """

    def __init__(self, repository: str, settings: HubSettings, progress: Progress | None = None) -> None:
        self.repository = repository
        self.progress = progress or NullProgress()
        self._endpoint = settings.endpoint
        self._token = settings.token
        self._revision = "main"
        # once files are listed, the repository is there and may be seen
        self._listed = False

    @property
    def page(self) -> str:
        """The repository's page."""
        parts = urlsplit(self._endpoint)
        # a mirror's address may hold a password
        return urlunsplit((parts.scheme, self.host, f"{parts.path}/{self.repository}", "", ""))

    @property
    def host(self) -> str:
        """Who is asked, for messages."""
        return _host(self._endpoint)

    def model_info(self, revision: str) -> dict[str, Any]:
        """The Hub's description of a revision, with its files: GET /api/models/ORG/NAME/revision/REV?blobs=true.

        Raises:
            HubUnreachableError: no answer, or not the Hub's.
            MissingResourceError: no such repository or revision, or it may not be seen.
            CheckpointError: an answer far larger than any listing.
        """
        self._revision = revision
        path = f"/api/models/{self.repository}/revision/{quote(revision, safe='')}?blobs=true"

        def attempt() -> dict[str, Any]:
            with self.stream(path) as response:
                return self._json(response)

        info = self.patiently(attempt, quick=True)
        self._listed = True
        return info

    def file_path(self, commit: str, name: str) -> str:
        """Where a file of a commit is served."""
        return f"/{self.repository}/resolve/{commit}/{quote(name)}"

    def file_headers(self, commit: str, name: str) -> Mapping[str, str]:
        """What the Hub says about a file, without fetching it: HEAD on its address."""

        def attempt() -> Mapping[str, str]:
            with self._attempt("HEAD", self.file_path(commit, name), {}) as response:
                headers: Mapping[str, str] = response.headers
                return headers

        return self.patiently(attempt)

    def patiently(self, attempt: Callable[[], T], *, quick: bool = False) -> T:
        """Repeats an attempt that fails in passing, a bounded number of times.

        Raises:
            HubUnreachableError: it kept failing.
        """
        backoff = Backoff(self.host, self.progress, quick=quick)
        while True:
            try:
                return attempt()
            except PassingError as failure:
                backoff.wait(failure)

    @contextmanager
    def stream(self, path: str, *, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        """An answer whose body is not yet read.

        Args:
            path: on the endpoint.
            start, stop: bytes that are wanted, `stop` excluded; the server may send all of them all the same.

        Raises:
            PassingError: try again.
            GemmaExportError: do not.
        """
        headers = {}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        with self._attempt("GET", path, headers) as response:
            yield response

    @contextmanager
    def _attempt(self, method: str, path: str, headers: dict[str, str]) -> Iterator[Any]:
        """One answer, from where the redirects lead; a HEAD stays on the endpoint, which knows the file."""
        url = self._endpoint + path
        try:
            for _ in range(_MOST_REDIRECTS):
                with session().stream(
                    method, url, headers=self._headers(url) | headers, follow_redirects=False, timeout=_TIMEOUT
                ) as response:
                    target = self._redirect(url, response)
                    if target is None or (method == "HEAD" and _origin(target) != _origin(self._endpoint)):
                        self._check(url, response)
                        yield response
                        return
                url = target
        except http_error() as error:
            # names only: ConnectError and its like are the same words in every HTTP library of this interface
            kind = type(error).__name__
            connected = kind not in ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol")
            text = " ".join(str(error).split())[:200]
            raise PassingError(f"{kind}: {text}" if text else kind, connected=connected) from error
        raise not_the_hub(self._endpoint, f"more than {_MOST_REDIRECTS} redirects")

    def _headers(self, url: str) -> dict[str, str]:
        # a compressed body has other bytes and another length than the file
        headers = {"User-Agent": f"gemma-export/{__version__}", "Accept-Encoding": "identity"}
        if self._token is not None and _origin(url) == _origin(self._endpoint):
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _redirect(self, url: str, response: Any) -> str | None:
        location = response.headers.get("location")
        if not 300 <= response.status_code < 400 or not location:
            return None
        try:
            target = urljoin(url, str(location))
        except ValueError:
            target = ""
        if _origin(target) is None:
            raise not_the_hub(url, f"a redirect to {location[:80]!r}")
        return target

    def _check(self, url: str, response: Any) -> None:
        status, headers = response.status_code, response.headers
        if status in (200, 206) or 300 <= status < 400:
            return
        if status in _PASSING_STATUS or status >= 500:
            asked = headers.get("retry-after", "")
            raise PassingError(f"status {status}", wait=float(asked) if asked.isdecimal() and len(asked) < 6 else 0.0)
        raise self._refusal(url, status, headers)

    def _refusal(self, url: str, status: int, headers: Mapping[str, str]) -> GemmaExportError:
        code, with_token = headers.get("x-error-code"), self._token is not None
        words = " ".join(headers.get("x-error-message", "").split())[:200]
        said = f": {words}" if words and words.isprintable() else ""
        if _origin(url) != _origin(self._endpoint) and not _is_html(headers):
            return refused_elsewhere(_host(url), self.repository, status, said)
        if code == "GatedRepo":
            return gated(self.repository, self.page, said, with_token=with_token)
        if code == "RevisionNotFound":
            return no_revision(self.repository, self._revision, self.page)
        if code == "EntryNotFound":
            return MissingResourceError(
                f"{self.repository} has a file that the Hub lists but does not serve: {urlsplit(url).path}",
                hint="Run the command again; if it stays so, tell the owner of the repository.",
            )
        if "credentials" in said:
            return refused(self.repository, status, said)
        # without a login a repository that is not there and one that may not be seen are the same to the Hub
        unseen = code == "RepoNotFound" or (code is None and status == 401 and not _is_html(headers))
        if unseen and not self._listed:
            return no_repository(self.repository, with_token=with_token)
        if code is None and (_is_html(headers) or status == 404):
            return not_the_hub(url.partition("?")[0], f"status {status} and what is no answer of the Hub")
        return refused(self.repository, status, said)

    def _json(self, response: Any) -> dict[str, Any]:
        body = bytearray()
        for chunk in response.iter_bytes(_CHUNK_BYTES):
            body += chunk
            if len(body) > _LARGEST_ANSWER:
                raise CheckpointError(
                    f"{self.repository}: the answer that lists its files is larger than {_LARGEST_ANSWER} bytes",
                    hint="This is no repository of a model; check its name.",
                )
        where = str(response.url).partition("?")[0]
        try:
            content = json.loads(body.decode("utf-8"), object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            html = _is_html(response.headers) or body.lstrip()[:1] == b"<"
            raise not_the_hub(where, "an HTML page instead of JSON" if html else "what is no JSON") from error
        if not isinstance(content, dict):
            raise not_the_hub(where, "JSON that describes no repository")
        return content


def _host(url: str) -> str:
    """Who is asked, without a password."""
    return urlsplit(url).netloc.rsplit("@", 1)[-1]


def _is_html(headers: Mapping[str, str]) -> bool:
    return "html" in headers.get("content-type", "").lower()


def _origin(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None for what is no web address."""
    try:
        parts = urlsplit(url)
        port = parts.port
        # as the connection will: no label may be empty or too long
        (parts.hostname or "").encode("idna")
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        return None
    return parts.scheme, parts.hostname.lower(), port or _DEFAULT_PORTS[parts.scheme]
