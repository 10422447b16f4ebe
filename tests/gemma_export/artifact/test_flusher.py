"""Flusher: early syncs on a thread, and errors that are told."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gemma_export.artifact import flusher
from gemma_export.artifact.flusher import Flusher
from gemma_export.artifact.hashing_file import HashingFile
from gemma_export.errors import OutputError

pytestmark = pytest.mark.skipif(not hasattr(os, "fdatasync"), reason="the thread exists only with fdatasync")


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher, "_STEP_BYTES", 1000)


def test_syncs_while_the_file_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(os.fstat(fd).st_size), real(fd)))
    with (tmp_path / "file").open("wb", buffering=0) as file:
        grows = Flusher(file.fileno())
        for size in range(100, 5001, 100):
            file.write(b"x" * 100)
            grows.advance(size)
        assert grows.close() is None
    assert synced
    assert (tmp_path / "file").read_bytes() == b"x" * 5000


def test_small_files_start_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda fd: pytest.fail("synced"))
    with (tmp_path / "file").open("wb", buffering=0) as file:
        grows = Flusher(file.fileno())
        grows.advance(999)
        assert grows.close() is None


def test_a_failed_sync_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that a sync could not write may be marked clean: a later sync that succeeds proves nothing."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OutputError, match="the disk failed"), HashingFile(tmp_path / "file") as file:
        file.write(b"x" * 3_000_000)


def test_the_content_is_whole(tmp_path: Path) -> None:
    content = os.urandom(3_333_333)
    with HashingFile(tmp_path / "file") as file:
        for start in range(0, len(content), 70_001):
            file.write(content[start : start + 70_001])
    assert (tmp_path / "file").read_bytes() == content
