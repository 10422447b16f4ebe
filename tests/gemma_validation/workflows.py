"""The example workflow's job, step by step, as a runner takes it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

__all__ = ["WORKFLOW", "run_job", "steps"]

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / "examples/ci/validate.yml"
_ALWAYS = "${{ !cancelled() }}"


def steps() -> list[dict[str, Any]]:
    """Of the only job."""
    content = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    (job,) = content["jobs"].values()
    found: list[dict[str, Any]] = job["steps"]
    return found


def run_job(place: Path, first: str = "") -> dict[str, int]:
    """Runs the job's commands but for the installation, in a directory, by the shell of a runner.

    Args:
        place: the job's directory; `summary.md` in it becomes the step summary.
        first: name of the step to begin with, where another job left what it needs.

    Returns:
        Exit codes of the steps that ran, by their names.
    """
    _make_programs(place / "bin")
    environment = {
        **os.environ,
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "runtimes/python", "validation")),
        "GITHUB_STEP_SUMMARY": str(place / "summary.md"),
    }
    codes: dict[str, int] = {}
    begun = not first
    for step in steps():
        begun = begun or step.get("name") == first
        if not begun or "run" not in step or step["run"].startswith("pip install"):
            continue
        if any(codes.values()) and step.get("if") != _ALWAYS:
            continue
        command = [str(shutil.which("bash")), "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        result = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        codes[step["name"]] = result.returncode
        # shown by pytest when the test fails
        print(step["name"], result.stdout, result.stderr, sep="\n")
    return codes


def _make_programs(directory: Path) -> None:
    """The console programs of this source tree, whatever is installed."""
    directory.mkdir()
    for program, module in (("gemma-export", "gemma_export"), ("gemma-validate", "gemma_validation")):
        path = directory / program
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
