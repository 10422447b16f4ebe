"""Room on the disk and files in the page cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import psutil

from benchmarks.harness.interrupts import Interrupts
from benchmarks.harness.program import Program
from gemma_export.errors import ResourceExhaustedError

__all__ = ["output_bytes", "require_disk", "warm_page_cache"]

# file system metadata, logs, tokenizer files
_RESERVE_BYTES = 256 << 20


def require_disk(work: Path, programs: Iterable[Program], input_bytes: int, *, input_exists: bool) -> None:
    """Refuses before the first byte when the largest program's files would not fit.

    Raises:
        ResourceExhaustedError: with the bytes needed and free.
    """
    factor = max((program.disk_factor for program in programs), default=0.0)
    needed = int(input_bytes * (factor + (0 if input_exists else 1))) + _RESERVE_BYTES
    free = shutil.disk_usage(work).free
    if free < needed:
        raise ResourceExhaustedError(
            f"{work}: not enough disk space: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free",
            hint="Name a folder on a larger disk with --work, or leave out a program with --skip.",
        )


def output_bytes(directory: Path) -> int:
    """Bytes of all files below a folder; links are not followed."""
    return sum(file.lstat().st_size for file in directory.rglob("*") if file.is_file() and not file.is_symlink())


def warm_page_cache(directory: Path, interrupts: Interrupts) -> bool:
    """Reads all files of the input once, so that every program finds them in memory, whoever ran before it.

    Returns False, and reads nothing, where they would fill more than half of the memory.
    """
    if output_bytes(directory) > psutil.virtual_memory().total // 2:
        return False
    buffer = bytearray(16 << 20)
    for file in sorted(directory.rglob("*")):
        if not file.is_file():
            continue
        with file.open("rb", buffering=0) as handle:
            while handle.readinto(buffer) and not interrupts.count:
                pass
    return True
