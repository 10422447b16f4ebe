"""Ctrl-C while a program runs: it is ended with its children, and what was finished is written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import psutil
import pytest

from benchmarks.harness import SCHEMA_FILE

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the harness needs wait4 and process groups")

ROOT = Path(__file__).parents[2]
WRITE = "import os, pathlib, sys; pathlib.Path(sys.argv[1], 'out').write_bytes(bytes(5000))"
# quick in its first round, a minute in the second
SLOW = """
import subprocess, time
root = pathlib.Path(os.environ["ROOT"])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(root / f"{os.getpid()}.pids").write_text(f"{os.getpid()} {child.pid} ")
if len(list(root.glob("*.pids"))) > 1:
    time.sleep(60)
child.kill()
child.wait()
"""
HARNESS = """
import pathlib, sys
from benchmarks.harness import run_benchmark
from fake_programs import benchmark, program, settings
root, write, slow = sys.argv[1:]
peer = program("peer", write + slow, environment={"ROOT": root})
sys.exit(run_benchmark(benchmark(program("ours", write), peer), settings(pathlib.Path(root))))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_finished_is_written(tmp_path: Path, number: signal.Signals) -> None:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "validation", ROOT / "runtimes/python", ROOT / "tests")))
    process = subprocess.Popen(
        [sys.executable, "-c", HARNESS, str(tmp_path), WRITE, SLOW],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # the peer's second round has started, and its child too
    pids = _wait_for_pids(tmp_path, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert not any(_runs(pid) for pid in pids)
    content = json.loads((tmp_path / "results/fake.json").read_text(encoding="utf-8"))
    jsonschema.validate(content, json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    assert content["interrupted"] is True
    assert content["finished"] is not None
    assert [(run["round"], run["program"], run["status"]) for run in content["runs"]] == [
        (1, "ours", "ok"),
        (1, "peer", "ok"),
        (2, "ours", "ok"),
        (2, "peer", "interrupted"),
    ]
    assert len(content["ratios"]["peer"]["seconds"]["rounds"]) == 1
    assert "interrupted: only what was finished is counted" in stdout
    assert (tmp_path / "results/fake.png").exists()
    assert list((tmp_path / "work").iterdir()) == []


def _runs(pid: int) -> bool:
    """A killed process stays in the table until its parent, or whoever inherited it, has read its end."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait_for_pids(root: Path, process: subprocess.Popen[str]) -> list[int]:
    """Of the peer and its child in round 2."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        files = sorted(root.glob("*.pids"), key=lambda file: file.stat().st_mtime)
        if len(files) == 2 and files[1].read_text(encoding="utf-8").endswith(" "):
            return [int(pid) for pid in files[1].read_text(encoding="utf-8").split()]
        time.sleep(0.02)
    raise AssertionError(process.communicate()[1])
