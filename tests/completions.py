"""Completions as the real bash gives them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["complete", "install"]


def install(program: str, module: str, directory: Path) -> None:
    """The console script, first on a PATH of its own, and its completion script beside it."""
    script = directory / program
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
    script.chmod(0o755)
    shown = subprocess.run([script, "--completion", "bash"], capture_output=True, text=True, check=True)
    (directory / f"{program}.bash").write_text(shown.stdout)


def complete(program: str, directory: Path, line: list[str], *, cwd: Path) -> list[str]:
    """What pressing Tab after the last word offers; "<directories>" where bash completes directories by itself."""
    code = f"""
        source "{directory}/{program}.bash"
        function_name=$(complete -p {program} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        compopt() {{ echo "<directories>"; }}
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        $function_name "$1"
        [ ${{#COMPREPLY[@]}} -eq 0 ] || printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PATH": f"{directory}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", code, "bash", program, *line],
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
        env=environment,
    )
    assert result.stderr == ""
    return result.stdout.splitlines()
