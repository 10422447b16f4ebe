"""A file hashed while it is written: every chunking, every way it can fail."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma_export.artifact.hashing_file import HashingFile
from gemma_export.errors import OutputError, ResourceExhaustedError

MIB = 1 << 20
CONTENT = np.random.default_rng(0).bytes(10 * MIB)


class Counter:
    """Adds up what a file reports."""

    def __init__(self) -> None:
        self.done = 0

    def start(self, total_bytes: int, label: str) -> None:
        raise AssertionError("a file is no stage")

    def advance(self, n: int) -> None:
        self.done += n

    def finish(self) -> None:
        raise AssertionError("a file is no stage")


def writer_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in ("hash", "write", "flush")]


def write_and_fail(file: HashingFile, length: int) -> None:
    with file:
        file.write(CONTENT[:length])
        raise KeyError("mine")


def fill_disk(file: HashingFile) -> None:
    """Makes every further write of the file fail with ENOSPC, as on a full disk."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file._file.fileno())
    os.close(full)


# chunks that end before, at and after the end of a buffer, and the small ones between
chunks = st.lists(st.one_of(st.integers(0, 9), st.integers(MIB - 2, MIB + 2), st.integers(0, 3 * MIB // 2)), max_size=6)


@given(chunks)
@settings(max_examples=40, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_digest_and_bytes_of_any_chunking(tmp_path: Path, lengths: list[int]) -> None:
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    counter = Counter()
    view = memoryview(CONTENT)
    start = 0
    with HashingFile(path, progress=counter) as file:
        for length in lengths:
            assert file.write(view[start : start + length]) == length
            start += length
            assert file.size == start
    assert path.read_bytes() == view[:start]
    assert file.sha256 == hashlib.sha256(view[:start]).hexdigest()
    assert counter.done == start


def test_more_bytes_than_the_buffers_hold(tmp_path: Path) -> None:
    with HashingFile(tmp_path / "file") as file:
        file.write(CONTENT)
        # the caller's array may change at once: the file has its own copy
        changing = bytearray(b"a" * 1000)
        file.write(changing)
        changing[:] = b"b" * 1000
    assert (tmp_path / "file").read_bytes() == CONTENT + b"a" * 1000
    assert file.sha256 == hashlib.sha256(CONTENT + b"a" * 1000).hexdigest()


def test_arrays_of_any_type(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float16).reshape(3, 4)
    with HashingFile(tmp_path / "file") as file:
        assert file.write(array.data) == 24
    assert (tmp_path / "file").read_bytes() == array.tobytes()


def test_strided_buffers_are_refused(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    with HashingFile(tmp_path / "file") as file:
        with pytest.raises(TypeError, match="contiguous"):
            file.write(array.T.data)
        with pytest.raises(TypeError, match="contiguous"):
            file.write(memoryview(b"abcdef")[::2])
        file.write(b"after")
    assert (tmp_path / "file").read_bytes() == b"after"


@pytest.mark.parametrize("offset", [3, 4, MIB, 2 * MIB + 5])
def test_pad_to(tmp_path: Path, offset: int) -> None:
    with HashingFile(tmp_path / "file") as file:
        file.write(b"abc")
        file.pad_to(offset)
        assert file.size == offset
        file.write(b"d")
    content = b"abc" + bytes(offset - 3) + b"d"
    assert (tmp_path / "file").read_bytes() == content
    assert file.sha256 == hashlib.sha256(content).hexdigest()


def test_pad_to_what_is_behind_writes_nothing(tmp_path: Path) -> None:
    with HashingFile(tmp_path / "file") as file:
        file.write(b"abc")
        file.pad_to(2)
    assert (tmp_path / "file").read_bytes() == b"abc"


def test_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    original = os.fsync
    # the size at that moment: nothing may be written after it
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_size), original(handle)))
    with HashingFile(tmp_path / "file") as file:
        file.write(CONTENT)
    assert synced == [len(CONTENT)]


def test_an_exception_in_the_block_stops_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sync(handle: int) -> None:
        raise AssertionError("a broken file needs no sync")

    monkeypatch.setattr(os, "fsync", no_sync)
    file = HashingFile(tmp_path / "file")
    with pytest.raises(KeyError, match="mine"):
        write_and_fail(file, 3 * MIB + 7)
    assert not writer_threads()
    assert file._file.closed
    # what was not handed over yet is dropped
    assert (tmp_path / "file").stat().st_size == 3 * MIB


def test_no_thread_outlives_the_block(tmp_path: Path) -> None:
    with HashingFile(tmp_path / "file"):
        assert len(writer_threads()) == 2
    assert not writer_threads()


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(OutputError, match="File exists") as raised:
        HashingFile(tmp_path / "file")
    assert raised.value.exit_code == 7
    assert (tmp_path / "file").read_bytes() == b"precious"
    assert not writer_threads()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("length", [1, 3 * MIB + 1])
def test_a_full_disk(tmp_path: Path, length: int) -> None:
    file = HashingFile(tmp_path / "file", needed_bytes=123_456_789)
    fill_disk(file)
    with pytest.raises(ResourceExhaustedError, match="No space left on device") as raised, file:
        file.write(CONTENT[:length])
    assert raised.value.exit_code == 5
    assert str(tmp_path / "file") in raised.value.message
    assert "123,456,789 bytes" in raised.value.message
    assert isinstance(raised.value.__cause__, OSError)
    assert not writer_threads()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_stops_the_producer(tmp_path: Path) -> None:
    file = HashingFile(tmp_path / "file")
    fill_disk(file)
    written = 0

    def produce() -> None:
        nonlocal written
        # without the error it goes on to the end; without the buffers handed back it waits for ever
        for _ in range(1000):
            file.write(CONTENT[:MIB])
            written += 1

    with pytest.raises(ResourceExhaustedError), file:
        produce()
    assert written < 1000


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_the_blocks_own_exception_comes_first(tmp_path: Path) -> None:
    file = HashingFile(tmp_path / "file")
    fill_disk(file)
    with pytest.raises(KeyError, match="mine"):
        write_and_fail(file, 2 * MIB)


def test_a_failing_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with (
        pytest.raises(OutputError, match="the disk failed") as raised,
        HashingFile(tmp_path / "file") as file,
    ):
        file.write(b"abc")
    assert raised.value.exit_code == 7
    assert file._file.closed


def test_a_failing_progress_reaches_the_caller(tmp_path: Path) -> None:
    class Broken(Counter):
        def advance(self, n: int) -> None:
            raise ZeroDivisionError("broken bar")

    with pytest.raises(ZeroDivisionError, match="broken bar"), HashingFile(tmp_path / "file", progress=Broken()) as f:
        f.write(b"abc")
    assert not writer_threads()
