"""Shell completion of the programs, in the real bash."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from completions import complete, install
from programs import assert_error, gemma_export, gemma_run, gemma_validate

from gemma_export.variants import VARIANTS

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


MODULES = {"gemma-export": "gemma_export", "gemma-run": "gemma_runtime", "gemma-validate": "gemma_validation"}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bin")
    for program, module in MODULES.items():
        install(program, module, directory)
    return directory


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["--var"], ["--variant"]),
        (["--variant", "2"], ["2b", "2b-it"]),
        (["--variant", ""], list(VARIANTS)),
        (["--variant", "tiny", "--target", "o"], ["ort"]),
        (["--fp"], ["--fp32", "--fp16"]),
        (["ver"], ["verify"]),
        (["verify", "--j"], ["--json"]),
        (["--completion", "f"], ["fish"]),
        (["--variant", "nothing-like-it"], []),
    ],
)
def test_gemma_export(line: list[str], expected: list[str], programs: Path, tmp_path: Path) -> None:
    assert complete("gemma-export", programs, line, cwd=tmp_path) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["--prov"], ["--provider"]),
        (["--provider", "c"], ["cpu", "cuda"]),
        (["--doc"], ["--doctor"]),
        ([""], ["gemma-tiny-fp16", "gemma-tiny-fp32"]),
        (["gemma-tiny-fp1"], ["gemma-tiny-fp16"]),
        (["./gemma-tiny-fp1"], ["./gemma-tiny-fp16"]),
        (["more/"], ["more/größe"]),
        (["--doctor", "more/g"], ["more/größe"]),
        # no exported folder begins so: bash completes directories, so that one can walk to it
        (["mo"], ["<directories>"]),
        (["nowhere/x"], ["<directories>"]),
        # a name that the shell must quote is left to the shell
        (["with"], ["<directories>"]),
    ],
)
def test_gemma_run(line: list[str], expected: list[str], programs: Path, tmp_path: Path) -> None:
    for name in ("gemma-tiny-fp32", "gemma-tiny-fp16", "more/größe", "with/a space"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "gemma_export.json").write_text("{}")
    (tmp_path / "gemma-tiny-fp16.bak").mkdir()
    (tmp_path / "gemma-tiny-fp16.txt").write_text("")
    assert complete("gemma-run", programs, line, cwd=tmp_path) == expected


def test_a_space_in_a_name(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "a space").mkdir()
    (tmp_path / "a space/gemma_export.json").write_text("{}")
    assert complete("gemma-run", programs, ["a"], cwd=tmp_path) == ["<directories>"]


def test_gemma_validate(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "gemma-tiny-q4").mkdir()
    (tmp_path / "gemma-tiny-q4/gemma_export.json").write_text("{}")
    assert complete("gemma-validate", programs, ["gemma-t"], cwd=tmp_path) == ["gemma-tiny-q4"]
    assert complete("gemma-validate", programs, ["--suite", ""], cwd=tmp_path) == ["quick", "full"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(shell: str) -> None:
    for program, run, variable in (
        ("gemma-export", gemma_export, "_GEMMA_EXPORT_COMPLETE"),
        ("gemma-run", gemma_run, "_GEMMA_RUN_COMPLETE"),
        ("gemma-validate", gemma_validate, "_GEMMA_VALIDATE_COMPLETE"),
    ):
        result = run("--completion", shell)
        assert (result.returncode, result.stderr) == (0, "")
        assert f"{variable}={shell}_complete" in result.stdout
        assert program in result.stdout
        if shutil.which(shell):
            subprocess.run([shell, "-n"], input=result.stdout, text=True, check=True)


def test_another_shell() -> None:
    assert_error(gemma_export("--completion", "powershell"), 2, "powershell", "bash", "zsh", "fish")
    assert_error(gemma_run("--completion", "powershell"), 2, "powershell")


@pytest.mark.parametrize(
    "words", ["gemma-export --variant 2", "gemma-export --target ", "gemma-run ", "gemma-validate "]
)
def test_completion_imports_nothing_heavy(words: str) -> None:
    program = words.split()[0]
    module = {"gemma-export": "gemma_export", "gemma-run": "gemma_runtime", "gemma-validate": "gemma_validation"}[
        program
    ]
    code = (
        "import atexit, os, sys\n"
        f"os.environ.update(_{program.replace('-', '_').upper()}_COMPLETE='bash_complete', COMP_WORDS={words!r}, "
        f"COMP_CWORD='{len(words.split(' ')) - 1}')\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'tokenizers', 'rich'}\n"
        "atexit.register(lambda: os._exit(bool(heavy & set(sys.modules))))\n"
        f"from {module}.cli import main\nmain()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0
