"""Downloads that break off, resume, lie, or do not fit: against a real server."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import filelock
import numpy as np
import pytest
from hub_server import COMMIT, Fault, HubServer, Repository, blob_id

from gemma_export.checkpoint.hub import backoff as hub_backoff
from gemma_export.checkpoint.hub import cache as hub_cache
from gemma_export.checkpoint.hub import client as hub_client
from gemma_export.checkpoint.hub import fetch, open_repository
from gemma_export.errors import CheckpointError, GemmaExportError, MissingResourceError
from gemma_export.progress import NullProgress

WEIGHTS = np.random.default_rng(0).bytes(3_000_000)
NAME = "model.safetensors"


class Recorder(NullProgress):
    """What a progress bar is told."""

    def __init__(self) -> None:
        self.started: list[tuple[int, str]] = []
        self.done = 0
        self.finished = 0
        self.told: list[str] = []

    def start(self, total_bytes: int, label: str) -> None:
        self.started.append((total_bytes, label))

    def advance(self, n: int) -> None:
        self.done += n

    def finish(self) -> None:
        self.finished += 1

    def tell(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def repository(hub: HubServer) -> HubServer:
    hub.repositories["org/model"] = Repository({"config.json": b"{}", NAME: WEIGHTS})
    return hub


def get(*names: str, progress: NullProgress | None = None) -> Path:
    return fetch("org/model", None, lambda opened: names or (NAME,), progress).directory


def fails(code: int, *phrases: str) -> GemmaExportError:
    with pytest.raises(GemmaExportError) as caught:
        get()
    error = caught.value
    assert error.exit_code == code, error.message
    for phrase in phrases:
        assert phrase in f"{error.message} | {error.hint}"
    return error


def blobs(tmp_path: Path) -> dict[str, int]:
    folder = tmp_path / "hf/hub/models--org--model/blobs"
    return {path.name: path.stat().st_size for path in folder.iterdir()} if folder.is_dir() else {}


def bodies(hub: HubServer) -> list[tuple[str | None, int]]:
    return [(request.headers.get("range"), request.sent) for request in hub.asked("", server="cdn")]


def test_a_cut_connection_is_resumed_where_it_stopped(repository: HubServer) -> None:
    repository.faults.append(Fault("", server="cdn", cut=1_000_000))
    repository.faults.append(Fault("", server="cdn", cut=500_000))
    progress = Recorder()
    assert (get(progress=progress) / NAME).read_bytes() == WEIGHTS
    (first, second, third) = bodies(repository)
    assert first == (None, 1_000_000)
    # what arrived is never sent again, but for a buffer on its way
    assert second[0] == "bytes=1000000-"
    assert third == ("bytes=1500000-", 1_500_000)
    assert progress.started == [(len(WEIGHTS), "downloading org/model")]
    assert (progress.done, progress.finished) == (len(WEIGHTS), 1)


def test_a_later_run_resumes_and_counts_only_what_is_left(repository: HubServer, tmp_path: Path) -> None:
    """Also the server that keeps failing: bounded, and the partial file stays."""
    repository.faults.append(Fault("", server="cdn", cut=2_000_000))
    repository.faults.append(Fault("", server="cdn", times=100, status=503))
    fails(4, "run the same command again: it resumes", "503", "6 times")
    assert len(bodies(repository)) == 6
    assert blobs(tmp_path) == {f"{blob_id(WEIGHTS, lfs=True)}.incomplete": 2_000_000}
    repository.faults.clear()
    repository.requests.clear()
    progress = Recorder()
    assert (get(progress=progress) / NAME).read_bytes() == WEIGHTS
    assert bodies(repository) == [("bytes=2000000-", 1_000_000)]
    assert progress.started == [(1_000_000, "downloading org/model")]
    assert progress.done == 1_000_000
    assert blobs(tmp_path) == {blob_id(WEIGHTS, lfs=True): len(WEIGHTS)}


def test_bytes_that_arrive_renew_the_patience(repository: HubServer) -> None:
    """More cuts than failures in a row are allowed: each brought something."""
    for _ in range(9):
        repository.faults.append(Fault("", server="cdn", cut=200_000))
    assert (get() / NAME).read_bytes() == WEIGHTS
    assert len(bodies(repository)) == 10


@pytest.mark.parametrize("path", ["/api/", "/resolve/", "\\?signature"])
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
def test_passing_failures_are_tried_again(path: str, status: int, repository: HubServer) -> None:
    repository.faults.append(Fault(path, times=2, status=status, headers={"Retry-After": "0"}))
    assert (get() / NAME).read_bytes() == WEIGHTS


def test_a_server_may_ask_for_patience_within_reason(repository: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(hub_backoff.time, "sleep", slept.append)
    for asked in ("7", "86400", "soon", "-1"):
        repository.faults.append(Fault("/api/", status=429, headers={"Retry-After": asked}))
    get()
    # the server's own thread sleeps on the same clock
    # a minute in all
    assert [seconds for seconds in slept if seconds != 0.01] == [7.0, 53.0, 0.0, 0.0]


def test_bytes_that_arrive_do_not_renew_what_a_server_may_ask_for(
    repository: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(hub_backoff.time, "sleep", slept.append)
    for _ in range(3):
        repository.faults.append(Fault("", server="cdn", status=503, headers={"Retry-After": "40"}))
        repository.faults.append(Fault("", server="cdn", cut=100_000))
    get()
    assert sum(seconds for seconds in slept if seconds != 0.01) == 60.0


def test_waiting_is_told(repository: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the question and of a file, with a stall in its middle: what is waited for, and how often it is tried."""
    monkeypatch.setattr(hub_client, "_TIMEOUT", 0.5)
    monkeypatch.setattr(hub_backoff, "WAITS", (0.0, 1.6, 0.0, 0.0, 0.0))
    repository.faults.append(Fault("/api/", times=2, status=503))
    repository.faults.append(Fault("", server="cdn", cut=1_000_000, stall=True))
    progress = Recorder()
    assert (get(progress=progress) / NAME).read_bytes() == WEIGHTS
    host = repository.endpoint.removeprefix("http://")
    assert progress.told == [
        f"waiting for {host} (attempt 2 of 6): status 503",
        f"waiting for {host} (attempt 3 of 6 in 2 s): status 503",
        f"waiting for {host} (attempt 2 of 6): ReadTimeout: timed out",
    ]
    assert progress.done == len(WEIGHTS)


def test_a_server_without_ranges_sends_all_of_it_again(repository: HubServer) -> None:
    repository.faults.append(Fault("", server="cdn", cut=1_000_000))
    repository.faults.append(Fault("", server="cdn", no_ranges=True))
    progress = Recorder()
    assert (get(progress=progress) / NAME).read_bytes() == WEIGHTS
    assert progress.done == len(WEIGHTS)


def test_a_wrong_hash_never_enters_the_cache(repository: HubServer, tmp_path: Path) -> None:
    def flipped(content: bytes) -> bytes:
        return bytes([content[0] ^ 1]) + content[1:]

    repository.faults.append(Fault("", server="cdn", alter=flipped))
    error = fails(3, NAME, "SHA-256", blob_id(WEIGHTS, lfs=True), "Run the same command again")
    assert hashlib.sha256(flipped(WEIGHTS)).hexdigest() in error.message
    assert blobs(tmp_path) == {}
    assert not list((tmp_path / "hf").rglob(NAME))
    assert (get() / NAME).read_bytes() == WEIGHTS


def test_a_partial_file_that_was_damaged_is_fetched_from_its_start(repository: HubServer, tmp_path: Path) -> None:
    """A power loss may leave zeros at the end of it."""
    repository.faults.append(Fault("", server="cdn", cut=2_000_000))
    repository.faults.append(Fault("", server="cdn", times=6, status=503))
    fails(4)
    (partial,) = (tmp_path / "hf").rglob("*.incomplete")
    with partial.open("r+b") as file:
        file.seek(1_900_000)
        file.write(bytes(100_000))
    progress = Recorder()
    assert (get(progress=progress) / NAME).read_bytes() == WEIGHTS
    assert bodies(repository)[-2:] == [("bytes=2000000-", 1_000_000), (None, 3_000_000)]
    assert progress.done == progress.started[0][0]
    # longer than the file can be
    (tmp_path / "hf").rename(tmp_path / "old")
    folder = tmp_path / "hf/hub/models--org--model/blobs"
    folder.mkdir(parents=True)
    (folder / f"{blob_id(WEIGHTS, lfs=True)}.incomplete").write_bytes(bytes(len(WEIGHTS) + 1))
    assert (get() / NAME).read_bytes() == WEIGHTS


@pytest.mark.parametrize("content", [WEIGHTS[:-1], WEIGHTS + b"x", b"", b"version https://git-lfs.github.com/spec/v1"])
def test_a_wrong_size_is_refused_before_a_byte_is_kept(content: bytes, repository: HubServer, tmp_path: Path) -> None:
    repository.faults.append(Fault("", server="cdn", body=content))
    error = fails(3, NAME, f"expected {len(WEIGHTS)} bytes", f"the server has {len(content)}")
    assert blobs(tmp_path) == {}
    assert "removed" not in error.message


def test_what_was_there_is_said_to_be_removed_if_it_was(repository: HubServer, tmp_path: Path) -> None:
    repository.faults.append(Fault("", server="cdn", cut=1_000_000))
    repository.faults.append(Fault("", server="cdn", body=WEIGHTS + b"x"))
    fails(3, NAME, f"the server has {len(WEIGHTS) + 1}; what was there of it was removed from the cache")
    assert blobs(tmp_path) == {}
    repository.faults.append(Fault("", server="cdn", alter=lambda content: bytes(len(content))))
    fails(3, NAME, "SHA-256", "; what was there of it was removed from the cache")
    assert blobs(tmp_path) == {}
    # a part that is only looked at was never in the cache
    opened = open_repository("org/model")
    repository.faults.append(Fault("", server="cdn", body=WEIGHTS + b"x"))
    with pytest.raises(CheckpointError, match=f"the server has {len(WEIGHTS) + 1}$"):
        opened.read(NAME, 0, 100)


def test_html_instead_of_a_file(repository: HubServer, tmp_path: Path) -> None:
    page = Fault("", times=100, server="cdn", body=b"<html>log in</html>", headers={"Content-Type": "text/html"})
    repository.faults.append(page)
    fails(4, f"an HTML page instead of {NAME}", repository.cdn, "something between")
    assert blobs(tmp_path) in ({}, {f"{blob_id(WEIGHTS, lfs=True)}.incomplete": 0})


@pytest.mark.parametrize("part", ["bytes 5-2999999/3000000", "bytes x-y/z", "", "bytes 0-1/2"])
def test_parts_that_are_not_what_was_asked_for(part: str, repository: HubServer, tmp_path: Path) -> None:
    repository.faults.append(Fault("", server="cdn", cut=1_000_000))
    headers = {"Content-Range": part}
    repository.faults.append(Fault("", server="cdn", status=206, headers=headers, body=b"x" * 2_000_000))
    fails(3, NAME)
    assert blobs(tmp_path) == {}


def test_what_is_cached_in_the_wrong_size_is_fetched_again(repository: HubServer) -> None:
    directory = get("config.json", NAME)
    blob = (directory / NAME).resolve()
    blob.write_bytes(WEIGHTS[:-1])
    repository.requests.clear()
    assert (get("config.json", NAME) / NAME).read_bytes() == WEIGHTS
    assert len(repository.asked("/resolve/")) == 1
    blob.unlink()
    assert (get() / NAME).read_bytes() == WEIGHTS


def test_two_commits_share_what_they_have_in_common(repository: HubServer) -> None:
    get(NAME)
    repository.repositories["org/model"].revisions["main"] = "f" * 40
    repository.requests.clear()
    directory = get(NAME)
    assert directory.name == "f" * 40
    assert (directory / NAME).read_bytes() == WEIGHTS
    assert not repository.asked("/resolve/")


def test_without_links_the_files_lie_in_the_snapshot(repository: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows without developer mode."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, "A required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", refuse)
    directory = get("config.json", NAME)
    assert not (directory / NAME).is_symlink()
    assert (directory / NAME).read_bytes() == WEIGHTS
    repository.requests.clear()
    get("config.json", NAME)
    assert not repository.asked("/resolve/")


def test_not_enough_disk_is_said_before_the_first_byte(
    repository: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(hub_cache.shutil, "disk_usage", lambda place: usage(len(WEIGHTS) - 1))
    fails(5, "3 MB (3,000,000 bytes) needed", "2,999,999 bytes", str(tmp_path / "hf/hub"), "HF_HOME")
    assert not repository.asked("/resolve/")
    monkeypatch.setattr(hub_cache.shutil, "disk_usage", lambda place: usage(len(WEIGHTS)))
    get()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_not_be_written(repository: HubServer, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir(mode=0o500)
    fails(7, "cannot be written", "HF_HOME")


def test_a_cache_that_is_a_file(repository: HubServer, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/hub").write_bytes(b"")
    fails(7, str(tmp_path / "hf/hub"), "cannot be written", "HF_HOME")


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 5), (errno.EACCES, 7), (errno.EROFS, 7), (errno.EIO, 7)])
def test_refusals_of_the_disk(number: int, code: int, repository: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    fails(code, os.strerror(number), "HF_HOME")
    monkeypatch.undo()


def test_another_program_that_fetches_the_same_file_is_waited_for(repository: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "hf/hub/.locks/models--org--model"
    folder.mkdir(parents=True)
    lock = filelock.FileLock(folder / f"{blob_id(WEIGHTS, lfs=True)}.lock", thread_local=False)
    lock.acquire()
    progress = Recorder()
    thread = threading.Thread(target=get, kwargs={"progress": progress})
    thread.start()
    deadline = time.monotonic() + 20
    while len(progress.started) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert progress.started[-1] == (0, f"waiting for another program that fetches {NAME}")
    assert bodies(repository) == []
    lock.release()
    thread.join(20)
    assert not thread.is_alive()
    assert len(bodies(repository)) == 1
    # the bar of the download comes back
    assert progress.started[-1] == (len(WEIGHTS), "downloading org/model")
    assert (progress.done, progress.finished) == (len(WEIGHTS), 1)


_FETCH = """
import sys
from gemma_export.checkpoint.hub import fetch
print(fetch("org/model", None, lambda opened: ["model.safetensors"]).directory)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_is_resumed_by_the_next(number: int, repository: HubServer, tmp_path: Path) -> None:
    """A real process in the middle of a body that never goes on."""
    repository.faults.append(Fault("", server="cdn", cut=2_000_000, stall=True))
    environment = {**os.environ, **repository.environment(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", _FETCH], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while sum(blobs(tmp_path).values()) < 1_900_000:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) != 0
    (left,) = blobs(tmp_path).values()
    assert left >= 1_900_000
    result = subprocess.run([sys.executable, "-c", _FETCH], env=environment, capture_output=True, text=True, check=True)
    assert (Path(result.stdout.strip()) / NAME).read_bytes() == WEIGHTS
    assert bodies(repository)[-1] == (f"bytes={left}-", len(WEIGHTS) - left)
    assert blobs(tmp_path) == {blob_id(WEIGHTS, lfs=True): len(WEIGHTS)}
    assert (tmp_path / "hf/hub/models--org--model/refs/main").read_text() == COMMIT


def test_a_file_that_is_listed_and_not_served(repository: HubServer) -> None:
    files = repository.repositories["org/model"].files
    repository.faults.append(
        Fault("/resolve/", status=404, headers={"X-Error-Code": "EntryNotFound", "Content-Type": "application/json"})
    )
    fails(4, "lists but does not serve", NAME)
    assert NAME in files
    # the other host is named, and it is no question of whether there is such a repository
    host = repository.cdn.removeprefix("http://")
    for status in (401, 403, 404):
        repository.faults.append(Fault("", server="cdn", status=status, headers={"Content-Type": "application/xml"}))
        with pytest.raises(
            MissingResourceError, match=f"{host}, where the Hub .* org/model, .* status {status}"
        ) as caught:
            get()
        assert "local folder" not in caught.value.message
        assert f"may block {host}" in caught.value.hint
    repository.faults.append(Fault("/resolve/", status=401))
    with pytest.raises(MissingResourceError, match="the Hub refused org/model with status 401"):
        get()
    repository.faults.append(Fault("", server="cdn", status=416))
    with pytest.raises(GemmaExportError, match="416"):
        get()


def test_an_empty_file(hub: HubServer) -> None:
    hub.repositories["org/model"] = Repository({"empty.json": b""})
    assert (get("empty.json") / "empty.json").read_bytes() == b""


def test_errors_are_no_other_kind(repository: HubServer) -> None:
    repository.faults.append(Fault("", server="cdn", body=b"short"))
    with pytest.raises(CheckpointError):
        get()
