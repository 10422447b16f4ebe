"""The benchmarks of quality and speed: our own programs really run, peers that are missing are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tolerances

from benchmarks.harness import SCHEMA_FILE
from benchmarks.quality_programs import quality_programs

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the harness needs wait4 and process groups")

ROOT = Path(__file__).parents[2]
# written after the model was trained; 512 tokens are a sequence
TEXT = ROOT / "gemma_export/resolution.py"


def run(directory: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """What a benchmark of one round found, and its table."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "runtimes/python")))
    folders = ("--work", str(directory / "work"), "--results", str(directory), "--peers", str(directory))
    finished = subprocess.run(
        [sys.executable, str(ROOT / "validation/benchmarks"), *arguments, "--rounds", "1", *folders],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert finished.returncode == 0, finished.stderr
    (file,) = directory.glob("*.json")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    jsonschema.validate(content, json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    return content, finished.stdout


def test_quality_of_our_own_and_a_peer_that_is_not_there(tmp_path: Path) -> None:
    names = ("int4 (default)", "int8", "llama.cpp Q4_0")
    content, table = run(tmp_path, "quality", "--tokens", "512", "--text", str(TEXT), "--only", ",".join(names))
    found = {entry["program"]: entry["values"] for entry in content["runs"] if entry["status"] == "ok"}
    assert set(found) == {"int4 (default)", "int8"}
    assert 0 < found["int8"]["mean_kl"] < tolerances.INT8_MEAN_KL < found["int4 (default)"]["mean_kl"] < 0.2
    assert found["int4 (default)"]["top1_percent"] < found["int8"]["top1_percent"] <= 100
    # 3.67 million weights: half a byte each and a byte each, with scales
    assert 1.83e6 < found["int4 (default)"]["weight_bytes"] < 2.1e6
    assert 3.67e6 < found["int8"]["weight_bytes"] < 3.9e6
    assert "llama.cpp Q4_0" in table
    assert "make peer-llama" in table


def test_speed_of_our_own(tmp_path: Path) -> None:
    content, _ = run(
        tmp_path, "speed", "--shape", "tiny", "--prompt", "16", "--new", "4", "--only", "int4 (default),int8"
    )
    found = {entry["program"]: entry["values"] for entry in content["runs"] if entry["status"] == "ok"}
    assert set(found) == {"int4 (default)", "int8"}
    assert all(values["decode"] > 0 and values["prefill"] > 0 for values in found.values())


def test_names_can_be_chosen_on_the_command_line() -> None:
    names = [program.name for program in quality_programs(Path("peers"))]
    assert len(set(names)) == len(names)
    assert not any("," in name for name in names)
