"""Ctrl-C while the reference runs on calibration text: exit 130, nothing left."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from programs import start


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("options", "stage"),
    [
        ("--int4 --max-kl 0.02", "running the reference"),
        ("--int4 --quantizer gptq", "calibrating the table"),
        ("--int4 --quantizer gptq --embedding-bits 8", "calibrating: "),
    ],
)
def test_interrupted(options: str, stage: str, tmp_path: Path) -> None:
    process = start("gemma_export", "--variant", "tiny", *options.split(), "--output", "out", cwd=tmp_path)
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith(stage):
            break
    else:
        pytest.fail("".join(seen))
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []
