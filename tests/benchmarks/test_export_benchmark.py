"""The export benchmark: our own exporter really runs; peers run where they are installed."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fake_programs import program, settings

from benchmarks.exporters import PRECISIONS, SUBJECT, exporters
from benchmarks.harness import SCHEMA_FILE, Benchmark, Input, run_benchmark
from benchmarks.synthetic_checkpoint import SHAPES, checkpoint_bytes, write_checkpoint

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the harness needs wait4 and process groups")

ROOT = Path(__file__).parents[2]
PEERS = ("onnxruntime-genai", "OpenVINO", "llama.cpp")


def command(*arguments: object, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "runtimes/python")))
    return subprocess.run(
        [sys.executable, str(ROOT / "validation/benchmarks"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    jsonschema.validate(content, json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    return content


def test_our_export_beside_a_fake_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "runtimes/python"))))
    ours = exporters("fp16", tmp_path)[0]
    peer = program("peer", "import pathlib, sys; pathlib.Path(sys.argv[1], 'model').write_bytes(bytes(1 << 20))")
    shape = SHAPES["tiny"]
    nbytes = checkpoint_bytes(shape)
    benchmark = Benchmark(
        name="fake",
        title="ours and a fake",
        subject=SUBJECT,
        programs=(ours, peer),
        input=Input(name="checkpoint", nbytes=nbytes, make=functools.partial(write_checkpoint, shape=shape)),
        options={},
    )
    assert run_benchmark(benchmark, settings(tmp_path, rounds=1)) == 0
    content = read(tmp_path / "results/fake.json")
    values = content["runs"][0]["values"]
    # float16 is as large as bfloat16; graphs and tokenizer take less than 2 MB
    assert nbytes < values["output_bytes"] < nbytes + 2_000_000
    # torch's import alone takes this
    assert values["peak_bytes"] > 150 << 20
    assert values["cpu_seconds"] > 0
    assert content["ratios"]["peer"]["output_bytes"]["median"] == values["output_bytes"] / (1 << 20)
    assert content["programs"][0]["versions"]["torch"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_environments_all_peers_are_named(tmp_path: Path, precision: str) -> None:
    arguments = ("export", "--shape", "tiny", "--precision", precision, "--peers", tmp_path / "none")
    result = command(*arguments, "--skip", SUBJECT, "--results", tmp_path)
    assert result.returncode == 4
    assert "error: no program can run here: onnxruntime-genai, OpenVINO, llama.cpp\nhint: " in result.stderr
    for name, target in zip(PEERS, ("genai", "openvino", "llama"), strict=True):
        assert f"left out: {name}: " in result.stderr
        assert f"make peer-{target} installs it" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "export"),
        (("--help",), 0, "export"),
        (("nonsense",), 2, "export"),
        (("export", "--help"), 0, "--precision"),
        (("export", "--precision", "fp7"), 2, "invalid choice"),
        (("export", "--rounds", "0"), 2, "at least 1"),
        (("export", "--keep"), 2, "error: --keep without --work keeps nothing\nhint: "),
        (("export", "--only", "other"), 2, "error: no program 'other'\nhint: There are: OpenVINO, gemma-export"),
    ],
)
def test_command_line(arguments: tuple[str, ...], code: int, text: str) -> None:
    result = command(*arguments)
    assert result.returncode == code
    assert text in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.peers
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_peer_exports_the_tiny_shape(tmp_path: Path, precision: str) -> None:
    arguments = ("export", "--shape", "tiny", "--precision", precision, "--rounds", 1, "--work", tmp_path / "work")
    result = command(*arguments, "--results", tmp_path, "--only", ",".join(PEERS), timeout=550)
    assert result.returncode == 0, result.stderr
    content = read(tmp_path / f"export-{precision}-tiny.json")
    assert {found["name"]: found["failure"] for found in content["programs"]} == dict.fromkeys(PEERS, "")
    for name in PEERS:
        size = content["summary"][name]["output_bytes"]["median"]
        weights = checkpoint_bytes(SHAPES["tiny"])
        # an LM head of its own, or 4 bits with scales, a larger embedding and tokenizer files
        assert (weights if precision == "fp16" else weights / 4) < size < 1.5 * weights
    assert list((tmp_path / "work").iterdir()) == []
