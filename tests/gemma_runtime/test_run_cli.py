"""gemma-run as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from programs import assert_error, gemma_run, start

SNAPSHOT = Path(__file__).parent / "help_run.txt"
PROMPT = "def read_file(path):\n"


def test_help_is_a_snapshot() -> None:
    assert gemma_run("--help").stdout == SNAPSHOT.read_text()


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, gemma_runtime.cli; sys.exit(bool({'numpy', 'onnxruntime', 'tokenizers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_text_on_stdout_and_figures_on_stderr(tiny_fp32: Path) -> None:
    result = gemma_run(tiny_fp32, PROMPT, "--max-new-tokens", 12)
    assert result.returncode == 0
    assert "tokens/s" in result.stderr
    content = json.loads(gemma_run(tiny_fp32, PROMPT, "--max-new-tokens", 12, "--json").stdout)
    assert result.stdout == content["text"] + "\n"
    assert sorted(content) == [
        "cached_tokens",
        "decode_tokens_per_second",
        "finish_reason",
        "first_token_seconds",
        "logprobs",
        "prefill_tokens_per_second",
        "prompt_tokens",
        "schema_version",
        "speculation",
        "stop",
        "text",
        "token_ids",
    ]
    assert content["finish_reason"] in ("length", "stop")
    assert len(content["token_ids"]) <= 12


def test_prompt_from_standard_input(tiny_fp32: Path) -> None:
    command = [sys.executable, "-m", "gemma_runtime", str(tiny_fp32), "-", "--max-new-tokens", "5", "--json"]
    piped = subprocess.run(command, input=PROMPT, capture_output=True, text=True, check=True)
    typed = gemma_run(tiny_fp32, PROMPT, "--max-new-tokens", 5, "--json")
    assert json.loads(piped.stdout)["token_ids"] == json.loads(typed.stdout)["token_ids"]


def test_a_nucleus_alone_means_sampling(tiny_fp32: Path) -> None:
    runs = {
        gemma_run(tiny_fp32, PROMPT, "--max-new-tokens", 16, "--top-p", 0.999, "--seed", seed).stdout
        for seed in (1, 2, 3)
    }
    assert len(runs) > 1


@pytest.mark.parametrize(
    ("arguments", "code", "phrases"),
    [
        ([""], 2, ["prompt is empty"]),
        (["x", "--max-new-tokens", "0"], 2, ["max-new-tokens"]),
        (["x", "--temperature", "-1"], 2, ["temperature"]),
        (["x", "--temperature", "nan"], 2, ["temperature"]),
        (["x", "--top-k", "0"], 2, ["top-k"]),
        (["x", "--top-p", "1.5"], 2, ["top-p"]),
        (["x", "--seed", "-1"], 2, ["seed"]),
        (["x", "--provider", "tpu"], 2, ["tpu"]),
        (["x", "--provider", "cuda"], 8, ["runs on cpu", "--provider cpu"]),
        (["x", "--provider", "directml"], 8, ["directml"]),
        (["x " * 9000], 2, ["tokens", "context has 8192", "--context"]),
        ([], 2, ["PROMPT"]),
    ],
)
def test_refusals(arguments: list[str], code: int, phrases: list[str], tiny_fp32: Path) -> None:
    assert_error(gemma_run(tiny_fp32, *arguments), code, *phrases)


def test_not_a_folder(tmp_path: Path) -> None:
    assert_error(gemma_run(tmp_path / "nowhere", "x"), 3, "nowhere does not exist")
    assert_error(gemma_run(tmp_path, "x"), 3, "has no gemma_export.json")
    (tmp_path / "file").write_text("")
    assert_error(gemma_run(tmp_path / "file", "x"), 3, "file is not a folder")


def test_truncated_weights(tiny_fp32: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_fp32, tmp_path / "folder")
    data = tmp_path / "folder/onnx/model.onnx_data"
    os.truncate(data, data.stat().st_size - 1)
    assert_error(gemma_run(tmp_path / "folder", "x"), 3, "onnx/model.onnx_data", "expected", "found")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_interrupt(tiny_fp32: Path) -> None:
    # this seed draws no stop token for thousands of steps
    process = start("gemma_runtime", tiny_fp32, PROMPT, "--max-new-tokens", 8000, "--temperature", 5, "--seed", 6)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_reader_that_goes_away(tiny_fp32: Path) -> None:
    process = start("gemma_runtime", tiny_fp32, PROMPT, "--max-new-tokens", 3000, "--temperature", 5)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_stdout_is_no_bug(tiny_fp32: Path) -> None:
    command = [sys.executable, "-m", "gemma_runtime", str(tiny_fp32), PROMPT, "--max-new-tokens", "3"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 5
    assert "error: stdout: no space left on device\nhint: " in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["--doctor"], ["--completion", "bash"]])
def test_a_full_stdout_whatever_is_printed(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "gemma_runtime", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (result.returncode, "Traceback" in result.stderr) == (5, False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_stderr_loses_no_answer(tiny_fp32: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        for folder, code in ((tiny_fp32, 0), (tmp_path, 3)):
            command = [sys.executable, "-m", "gemma_runtime", str(folder), PROMPT, "--max-new-tokens", "3"]
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
            assert (result.returncode, bool(result.stdout)) == (code, code == 0)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_interrupted_before_it_began(tmp_path: Path) -> None:
    # a package that is slow to import, as on a cold disk
    (tmp_path / "click").mkdir()
    (tmp_path / "click/__init__.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = start("gemma_runtime", "--help", PYTHONPATH=path)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in stderr) == (130, False)


def test_importing_the_library_loads_no_engine_and_no_tokenizer() -> None:
    code = (
        "import sys\nfrom gemma_runtime import Chat, Constraint, Gemma, Sampling\n"
        "print({'onnxruntime', 'tokenizers', 'sentencepiece', 'llguidance', 'click', 'torch'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
    code = "import sys, gemma_runtime; print('numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
