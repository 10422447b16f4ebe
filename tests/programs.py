"""Runs the console programs as a user's shell does."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from forked_programs import run_forked

__all__ = ["assert_error", "gemma_export", "gemma_run", "gemma_validate", "start"]


_SECONDS = 300
_TERMINAL = {"COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
_READ_AT_THE_START = ("PYTHON", "LC_", "LANG", "LD_", "OMP_", "ORT_", "GLIBC_", "NUMBA_")


def start(module: str, *arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """A running program; wide enough that help is not wrapped by the caller's terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=cwd,
        env={**os.environ, **_TERMINAL, **environment},
    )


def _run(
    module: str, *arguments: object, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    # what an interpreter or a package reads when it starts needs a start of its own
    if os.name != "posix" or any(name.startswith(_READ_AT_THE_START) for name in environment):
        process = start(module, *arguments, cwd=cwd, **environment)
        stdout, stderr = process.communicate(timeout=_SECONDS)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        texts = list(map(str, arguments))
        code = run_forked(
            module,
            texts,
            cwd=cwd,
            environment={**os.environ, **_TERMINAL, **environment},
            seconds=_SECONDS,
            stdout=out.fileno(),
            stderr=err.fileno(),
        )
        said = []
        for file in (out, err):
            file.seek(0)
            # as subprocess.PIPE with text=True has it
            said.append(file.read().decode("utf-8").replace("\r\n", "\n").replace("\r", "\n"))
    return subprocess.CompletedProcess([sys.executable, "-m", module, *texts], code, *said)


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
