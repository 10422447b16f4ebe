"""Whether a program can run here, and in which versions."""

from __future__ import annotations

import dataclasses
import email
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness.program import Need, Program

__all__ = ["Found", "probe", "run_environment"]

_TIME_LIMIT_SECONDS = 120
# a variable of our environment would change what another environment imports
_OWN_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_VERSIONS = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a probe found: versions, and why the program cannot run (empty: it can)."""

    versions: Mapping[str, str]
    missing: str


def run_environment(program: Program) -> dict[str, str]:
    """The environment of a program's processes, before {scratch} is filled in."""
    inherited = {name: value for name, value in os.environ.items() if name not in _OWN_VARIABLES}
    return {**inherited, **program.environment}


def probe(program: Program) -> Found:
    """Asks the interpreter for versions, then checks each need; the first thing missing is named."""
    environment = run_environment(program)
    text = _output((str(program.python), "-c", _VERSIONS, *program.packages), environment)
    if text is None:
        return Found({}, f"{program.python} does not run; {program.install}")
    versions: dict[str, str | None] = json.loads(text)
    installed = {name: version for name, version in versions.items() if version is not None}
    installed |= dict(map(_name_and_version, program.metadata))
    absent = [name for name, version in versions.items() if version is None]
    if absent:
        return Found(installed, f"not installed: {', '.join(absent)}; {program.install}")
    for need in program.needs:
        if not _is_met(need, environment):
            return Found(installed, need.missing)
    return Found(installed, "")


def _name_and_version(metadata: Path) -> tuple[str, str]:
    """Of a source distribution; its format is that of mail headers."""
    try:
        headers = email.message_from_string(metadata.read_text(encoding="utf-8"))
    except OSError:
        return metadata.parent.name, "unknown"
    return str(headers["Name"]), str(headers["Version"])


def _is_met(need: Need, environment: Mapping[str, str]) -> bool:
    if need.file is not None and not need.file.exists():
        return False
    if not need.command:
        return True
    text = _output(need.command, environment)
    return text is not None and need.contains in text


def _output(command: tuple[str, ...], environment: Mapping[str, str]) -> str | None:
    """stdout of a command that succeeds."""
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env=dict(environment),
            # away from a source tree, whose packages would be found before the installed ones
            cwd=tempfile.gettempdir(),
            timeout=_TIME_LIMIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout
