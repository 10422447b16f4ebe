"""Disk space, and what the operating system's refusals become."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from gemma_export.artifact.disk import check_disk, explained, nearest_existing, sync_directory, write_error
from gemma_export.errors import GemmaExportError, OutputError, ResourceExhaustedError


def test_too_small_a_disk(tmp_path: Path) -> None:
    output = tmp_path / "not" / "yet" / "there"
    with pytest.raises(ResourceExhaustedError, match="not enough disk space for") as raised:
        check_disk(output, 1234 * 10**12)
    assert raised.value.exit_code == 5
    assert str(output) in raised.value.message
    assert "1234 TB (1,234,000,000,000,000 bytes) needed" in raised.value.message
    assert f"free at {tmp_path}" in raised.value.message
    assert "--output" in raised.value.hint


def test_exactly_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=5000))
    check_disk(tmp_path / "out", 5000)
    with pytest.raises(ResourceExhaustedError, match=r"5 kB \(5,001 bytes\) needed, 5 kB \(5,000 bytes\) free"):
        check_disk(tmp_path / "out", 5001)


def test_nearest_existing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    assert nearest_existing(tmp_path / "a" / "b" / "c") == tmp_path / "a"
    assert nearest_existing(tmp_path / "a" / ".." / "a") == tmp_path / "a"
    monkeypatch.chdir(tmp_path)
    assert nearest_existing(Path("a/b")) == tmp_path / "a"


@pytest.mark.parametrize(
    ("number", "kind", "exit_code", "text"),
    [
        (errno.ENOSPC, ResourceExhaustedError, 5, "the folder needs 2 kB (2,000 bytes)"),
        (errno.EDQUOT, ResourceExhaustedError, 5, "the folder needs 2 kB (2,000 bytes)"),
        (errno.EFBIG, ResourceExhaustedError, 5, "the folder needs 2 kB (2,000 bytes)"),
        (errno.EACCES, OutputError, 7, "Permission denied"),
        (errno.EPERM, OutputError, 7, "Operation not permitted"),
        (errno.EROFS, OutputError, 7, "Read-only file system"),
        (errno.EIO, OutputError, 7, "the disk failed"),
        (errno.ENAMETOOLONG, OutputError, 7, "File name too long"),
    ],
)
def test_refusals(tmp_path: Path, number: int, kind: type[GemmaExportError], exit_code: int, text: str) -> None:
    refusal = OSError(number, os.strerror(number), str(tmp_path))
    error = write_error(refusal, tmp_path / "file", 2000)
    assert type(error) is kind
    assert error.exit_code == exit_code
    assert text in error.message
    assert error.message.startswith(f"writing {tmp_path / 'file'}: ")
    assert error.message.count(str(tmp_path / "file")) == 1
    assert "\n" not in error.message


def test_what_to_do_differs(tmp_path: Path) -> None:
    hints = {
        write_error(OSError(n, "x"), tmp_path, 0).hint for n in (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EBUSY)
    }
    assert len(hints) == 4


def test_a_refusal_without_a_number(tmp_path: Path) -> None:
    assert write_error(OSError("odd"), tmp_path, 0).message == f"writing {tmp_path}: odd"


def test_explained_translates_only_the_operating_systems_errors(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory") as raised, explained(tmp_path / "a"):
        os.stat(tmp_path / "missing")
    assert isinstance(raised.value.__cause__, FileNotFoundError)
    with pytest.raises(KeyError), explained(tmp_path):
        raise KeyError("mine")


def test_sync_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = errno.EINVAL
    handles: list[int] = []

    def refuse(handle: int) -> None:
        handles.append(handle)
        raise OSError(number, os.strerror(number))

    sync_directory(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse)
    # network file systems that cannot
    sync_directory(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        sync_directory(tmp_path)
    assert len(handles) == 2
    for handle in handles:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)
