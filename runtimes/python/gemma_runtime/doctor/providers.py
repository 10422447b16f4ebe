"""What onnxruntime really does here: imported and started in processes of their own, see probe.py."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["Imported", "Provider", "import_onnxruntime", "start_provider"]

_PROBE = Path(__file__).with_name("probe.py")
# TensorRT and OpenVINO compile their first graph; a driver that hangs never returns
_TIMEOUT_SECONDS = 120
# -P and the caller's own sys.path: the child must find the packages that gemma-run finds, and no others
_RUN = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "runpy.run_path(sys.argv.pop(1), {}, '__main__')"
)
# how a session refuses a graph that would run on another provider
_REFUSED = "fallback to CPU EP has been explicitly disabled"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LOG_PREFIX = re.compile(r"^.*?\[[EFW]:onnxruntime:[^\]]*\]\s*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """The module `onnxruntime`, as this Python imports it."""

    version: str | None
    file: str | None
    # providers that it was built with, in its order
    available: tuple[str, ...]
    # why it cannot be used; None where it can
    error: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provider:
    """One execution provider, started on a graph of one node."""

    name: str
    starts: bool
    # what the session says it has, and where the node ran
    session_providers: tuple[str, ...]
    node_provider: str | None
    # why it does not start
    reason: str | None


def import_onnxruntime() -> Imported:
    """Imports onnxruntime, and says why that is impossible."""
    found = _probe()
    failure = found.get("failure")
    if failure is None and not (found["version"] and found["complete"]):
        failure = "the module has no __version__ or no InferenceSession: files of it are missing"
    return Imported(
        version=found.get("version"),
        file=found.get("file"),
        available=tuple(found.get("available", ())) if failure is None else (),
        error=failure,
    )


def start_provider(name: str) -> Provider:
    """Starts one provider, and says why that is impossible."""
    found = _probe(name)
    session, node = tuple(found.get("session_providers", ())), found.get("node_provider")
    reason = found.get("failure")
    if reason is None and session[:1] != (name,):
        reason = f"onnxruntime fell back to {', '.join(session) or 'nothing'}"
    elif reason is None and node != name:
        reason = f"the graph ran on {node}"
    elif reason is None and not found["right"]:
        reason = "it computes wrong numbers"
    return Provider(name=name, starts=reason is None, session_providers=session, node_provider=node, reason=reason)


def _probe(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-P", "-B", "-c", _RUN, json.dumps(sys.path), str(_PROBE), *arguments]
    # telemetry is on by default since 1.29 and reads this only while it is imported
    environment = {"ORT_DISABLE_TELEMETRY": "1", **os.environ}
    try:
        ended = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"no answer after {_TIMEOUT_SECONDS} s"}
    except OSError as error:
        return {"failure": f"cannot start {sys.executable}: {error.strerror}"}
    logged = _logged(ended.stderr.decode("utf-8", "replace"))
    try:
        found: dict[str, Any] = json.loads(ended.stdout.decode("utf-8", "replace").splitlines()[-1])
    except (ValueError, IndexError):
        return {"failure": f"the process {_ending(ended.returncode)}{': ' + logged if logged else ''}"}
    if _REFUSED in found.get("failure", ""):
        # why the provider's library did not load, if that is why, is in the log only
        found["failure"] = logged or "it takes no node of an ordinary graph"
    elif "failure" in found:
        found["failure"] = _one_line(found["failure"])
    return found


def _logged(text: str) -> str:
    """The first error that onnxruntime logged, without the one that only repeats what we asked for."""
    lines = [_COLOUR.sub("", line).strip() for line in text.splitlines()]
    errors = [line for line in lines if "[E:onnxruntime" in line and _REFUSED not in line]
    return _one_line(_LOG_PREFIX.sub("", errors[0])) if errors else ""


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 400 else text[:397] + "..."


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    names = {int(number): number.name for number in signal.Signals}
    return f"was ended by {names.get(-code, f'signal {-code}')}"
