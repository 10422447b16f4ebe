"""SHA-256 of source files."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from gemma_export.checkpoint import HashedFile, hash_files, hashing
from gemma_export.errors import CheckpointError


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1000])
def test_equals_hashlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(hashing, "_CHUNK_BYTES", 100)
    content = bytes(index * 7 % 256 for index in range(size))
    first, second = tmp_path / "b.safetensors", tmp_path / "a.json"
    first.write_bytes(content)
    second.write_bytes(b"{}")
    assert hash_files([first, second]) == (
        HashedFile(name="b.safetensors", size=size, sha256=hashlib.sha256(content).hexdigest()),
        HashedFile(name="a.json", size=2, sha256=hashlib.sha256(b"{}").hexdigest()),
    )


def test_nothing_to_hash() -> None:
    assert hash_files([]) == ()


def test_stops_when_told(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"content")
    stop = threading.Event()
    assert len(hash_files([path], stop)) == 1
    stop.set()
    assert hash_files([path], stop) == ()


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_an_unreadable_file_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(CheckpointError, match=r"^model.safetensors cannot be read: ") as caught:
        hash_files([path])
    assert isinstance(caught.value.__cause__, OSError)
