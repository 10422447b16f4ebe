"""Ctrl-C while a package is imported: C code may answer it with an ImportError, and it stays an interruption."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

_SWALLOWED = """
import os, signal, sys, time, click
if "{signal}" == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)

def fail(*arguments, **options):
    try:
        os.kill(os.getpid(), signal.{sent})
        time.sleep(0.2)
    except KeyboardInterrupt:
        pass
    from gemma_validation.errors import MissingPackageError
    raise MissingPackageError("numpy failed to import", hint="Install it.")
"""
_VALIDATE = """
from gemma_validation.cli import command
command.cli.callback = fail
sys.argv = ["gemma-validate", "folder"]
command.main()
"""
_EXPORT = """
from gemma_export.cli import entry
entry.cli.main = fail
entry.main()
"""


def _run(program: str, sent: str = "SIGINT", before: str = "") -> tuple[int, str]:
    script = _SWALLOWED.format(signal=before, sent=sent) + program
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env={**os.environ, "NO_COLOR": "1"}
    )
    return result.returncode, result.stderr


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("program", [_VALIDATE, _EXPORT], ids=["validate", "export"])
def test_an_error_that_an_interruption_became_is_one(program: str, sent: str) -> None:
    code, stderr = _run(program, sent)
    assert code == 130, stderr
    assert stderr.splitlines()[-2].startswith("error: interrupted")
    assert "Traceback" not in stderr


@pytest.mark.parametrize(("program", "code"), [(_VALIDATE, 4), (_EXPORT, 1)], ids=["validate", "export"])
def test_an_ignored_ctrl_c_stays_ignored(program: str, code: int) -> None:
    """As of a program in the background: what fails behind it is told as what it is."""
    assert _run(program, before="ignored")[0] == code
