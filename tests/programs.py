"""Runs the console programs as a user's shell does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["assert_error", "gemma_export", "gemma_run", "gemma_validate", "start"]


def start(module: str, *arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """A running program; wide enough that help is not wrapped by the caller's terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8", **environment},
    )


def _run(
    module: str, *arguments: object, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    process = start(module, *arguments, cwd=cwd, **environment)
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def gemma_export(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """gemma-export, finished."""
    return _run("gemma_export", *arguments, cwd=cwd, **environment)


def gemma_run(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """gemma-run, finished."""
    return _run("gemma_runtime", *arguments, cwd=cwd, **environment)


def gemma_validate(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """gemma-validate, finished."""
    return _run("gemma_validation", *arguments, cwd=cwd, **environment)


def assert_error(result: subprocess.CompletedProcess[str], code: int, *phrases: str) -> None:
    """One error line, one hint line, the exit code, no traceback, nothing on stdout."""
    assert result.returncode == code, result.stderr
    errors = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert [line.split(":")[0] for line in errors[-2:]] == ["error", "hint"], result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    for phrase in phrases:
        assert phrase in result.stderr, result.stderr
