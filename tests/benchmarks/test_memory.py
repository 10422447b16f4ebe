"""Peak memory of process trees that take known amounts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tolerances import INTERPRETER_BYTES

from benchmarks.harness.interrupts import Interrupts
from benchmarks.harness.process import ProcessResult, run_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no proportional sizes")

MIB = 1 << 20


# The harness in a process as small as a benchmark's: whatever is started inherits its starter's peak
# (benchmarks/harness/memory.py), and that of a test process that has run models would hide the peaks here. A shell
# between the two inherits it instead.
_SMALL = """
import dataclasses, json, os, sys
from pathlib import Path
from benchmarks.harness.interrupts import Interrupts
from benchmarks.harness.process import run_process
root = Path(sys.argv[2])
result = run_process([sys.executable, "-c", sys.argv[1]], environment=os.environ, directory=root, log=root / "log",
                     time_limit=60, interrupts=Interrupts())
print(json.dumps(dataclasses.asdict(result)))
"""


def measure(code: str, root: Path) -> ProcessResult:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["sh", "-c", '"$0" "$@"; exit $?', sys.executable, "-c", _SMALL, code, str(root)]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return ProcessResult(**json.loads(told))


def test_one_process(tmp_path: Path) -> None:
    result = measure("block = bytearray(b'x') * (200 << 20)", tmp_path)
    assert result.status == "ok"
    assert 200 * MIB <= result.peak_process_bytes <= 200 * MIB + INTERPRETER_BYTES
    # the kernel's figure holds even where no sample saw the peak
    assert result.peak_bytes >= result.peak_process_bytes


def test_child_and_parent_add_up(tmp_path: Path) -> None:
    child = "block = bytearray(b'x') * (200 << 20); import time; time.sleep(0.8)"
    code = (
        "import subprocess, sys; block = bytearray(b'x') * (100 << 20);"
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    result = measure(code, tmp_path)
    assert result.processes == 2
    assert 300 * MIB <= result.peak_bytes <= 300 * MIB + 2 * INTERPRETER_BYTES
    # what /usr/bin/time -v would say: the larger one of the two
    assert 200 * MIB <= result.peak_process_bytes <= 200 * MIB + INTERPRETER_BYTES
    assert result.peak_anonymous_bytes is not None
    assert 300 * MIB <= result.peak_anonymous_bytes <= result.peak_bytes


def test_forked_children_do_not_count_their_parents_pages_again(tmp_path: Path) -> None:
    code = (
        "import os, time; block = bytearray(b'x') * (150 << 20)\n"
        "for _ in range(3):\n    if os.fork() == 0:\n        time.sleep(0.8)\n        os._exit(0)\n"
        "for _ in range(3):\n    os.wait()"
    )
    result = measure(code, tmp_path)
    assert result.processes == 4
    assert 150 * MIB <= result.peak_bytes <= 150 * MIB + 4 * INTERPRETER_BYTES


def test_files_that_are_only_read_are_told_apart(tmp_path: Path) -> None:
    """A mapped file is resident memory, and none that the program needs to itself."""
    (tmp_path / "file").write_bytes(bytes(100 * MIB))
    code = (
        "import mmap, time; file = open('file', 'rb'); view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "sum(view[i] for i in range(0, len(view), 4096)); time.sleep(0.3)"
    )
    result = measure(code, tmp_path)
    assert result.peak_bytes >= 100 * MIB
    assert result.peak_anonymous_bytes is not None
    assert result.peak_anonymous_bytes <= INTERPRETER_BYTES


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    result = run_process(
        [str(tmp_path / "none")],
        environment={},
        directory=tmp_path,
        log=tmp_path / "log",
        time_limit=60,
        interrupts=Interrupts(),
    )
    assert result.status == "failed"
    assert result.reason == f"cannot start {tmp_path / 'none'}: No such file or directory"
