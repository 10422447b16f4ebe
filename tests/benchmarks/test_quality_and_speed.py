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
from fake_programs import program

from benchmarks import speed
from benchmarks.harness import SCHEMA_FILE
from benchmarks.quality_programs import quality_programs
from benchmarks.speed_programs import Contestant, Lengths, contestants
from gemma_export.errors import UsageError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the harness needs wait4 and process groups")

ROOT = Path(__file__).parents[2]
# written after the model was trained; 512 tokens are a sequence
TEXT = ROOT / "gemma_export/resolution.py"


def run(directory: Path, *arguments: str, peers: Path | None = None) -> tuple[dict[str, Any], str]:
    """What a benchmark of one round found, and its table."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "runtimes/python")))
    folders = ("--work", str(directory / "work"), "--results", str(directory), "--peers", str(peers or directory))
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


def test_speed_of_our_own_and_of_pytorch(tmp_path: Path) -> None:
    names = ("int4 (default)", "PyTorch bf16", "OpenVINO int4")
    lengths = ("--prompts", "16", "--contexts", "16,24", "--new", "4")
    content, table = run(tmp_path, "speed", "--shape", "tiny", *lengths, "--only", ",".join(names))
    found = {entry["program"]: entry["values"] for entry in content["runs"] if entry["status"] == "ok"}
    # PyTorch runs the checkpoint itself, which is therefore kept until the end
    assert set(found) == {"int4 (default)", "PyTorch bf16"}
    for values in found.values():
        assert {"decode_16", "decode_24", "prefill_16", "prefill_24"} < set(values)
        assert values["first_token"] > values["load"] > 0
    assert content["ratios"]["PyTorch bf16"]["decode_24"]["median"] > 0
    assert "decode at 24" in table
    # read as a step to a context only
    assert "prefill 24" not in table
    assert "make peer-openvino" in table
    assert (tmp_path / "speed-tiny.png").stat().st_size > 10_000
    assert list((tmp_path / "work").iterdir()) == []


def test_an_export_that_fails_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def contestant(name: str, code: str) -> Contestant:
        exporter = program(name, code)
        return Contestant(runner=exporter, folder=name, exporter=exporter, size=1.0)

    broken = contestant("broken", "raise SystemExit('no such layer: 7')")
    whole = contestant("whole", "import pathlib, sys; pathlib.Path(sys.argv[1], 'model').write_bytes(b'1')")
    speed._make_exports(tmp_path / "input", shape="tiny", chosen=[broken, whole])
    assert (tmp_path / "input/whole/model").read_bytes() == b"1"
    # nobody runs it
    assert not (tmp_path / "input/checkpoint").exists()
    assert "cannot make broken: no such layer: 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (("--subject", "other"), "no program 'other'"),
        (("--only", "other"), "no program 'other'"),
    ],
)
def test_unknown_names(tmp_path: Path, arguments: tuple[str, ...], phrase: str) -> None:
    with pytest.raises(UsageError, match=phrase) as error:
        speed.main([*arguments, "--peers", str(tmp_path)])
    assert "int4 (default)" in error.value.hint


@pytest.mark.parametrize("lengths", ["0", "12,-1", "many"])
def test_impossible_lengths(lengths: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        speed.main(["--contexts", lengths])
    assert ended.value.code == 2
    assert "--contexts" in capsys.readouterr().err


def test_names_can_be_chosen_on_the_command_line() -> None:
    lengths = Lengths(prompts=(128,), contexts=(128,), new=8)
    for programs in (
        quality_programs(Path("peers")),
        [contestant.runner for contestant in contestants(Path("peers"), lengths)],
    ):
        names = [program.name for program in programs]
        assert len(set(names)) == len(names)
        assert not any("," in name for name in names)


@pytest.mark.peers
def test_every_peer_generates_with_the_tiny_shape(tmp_path: Path) -> None:
    lengths = ("--prompts", "16", "--contexts", "16", "--new", "4")
    content, _ = run(tmp_path, "speed", "--shape", "tiny", *lengths, peers=ROOT / ".peers")
    assert {found["name"]: found["failure"] for found in content["programs"] if found["failure"]} == {}
    assert all(values["decode_16"]["median"] > 0 for values in content["summary"].values())
