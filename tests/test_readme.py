"""What the README's section "Generate" says is run, on the built-in model under each folder's name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from folders import rewrite_manifest

from gemma_runtime.cli.repl_commands import command_names

README = Path(__file__).parents[1] / "README.md"
# a short context: what runs into its end does so soon
CONTEXT = 256
CITIES = r'\[\s*"(Paris|Rome|Lima)",\s*"(Paris|Rome|Lima)"\s*\]'


def section() -> str:
    text = README.read_text(encoding="utf-8")
    return text[text.index("\n## Generate\n") : text.index("\n## Smaller weights\n")]


def block(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", section(), flags=re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_fp32: Path) -> Path:
    """A directory with every folder and file that the section names, and gemma-run on the way to it."""
    work = tmp_path_factory.mktemp("readme")
    shutil.copytree(tiny_fp32, work / "folder")
    rewrite_manifest(work / "folder", context_length=CONTEXT)
    for name in set(re.findall(r"\b(?:code)?gemma-[27]b[\w-]*", section())):
        (work / name).symlink_to("folder")
    (work / "main.py").write_text("def add(a, b):\n    return \n", encoding="utf-8")
    (work / "rest.py").write_text("\n\nprint(add(1, 2))\n", encoding="utf-8")
    (work / "bin").mkdir()
    program = work / "bin/gemma-run"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gemma_runtime "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return work


def run(command: list[str], work: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(work / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        command,
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
@pytest.mark.parametrize("line", block("").splitlines())
def test_a_line_of_the_shell(line: str, work: Path) -> None:
    if "cities.json" in line:
        pytest.importorskip("llguidance")
    result = run(["sh", "-c", line], work)
    assert result.returncode == 0, result.stderr
    if line.startswith("gemma-run"):
        assert result.stdout
        # the built-in model may have nothing to say to a prompt, but it has read it
        assert "--json " in line or re.search(r"tokens/s|profiling", result.stderr)
    if "--samples 3" in line:
        assert "sample 3 of 3: " in result.stderr
    if "--json-schema" in line:
        assert re.fullmatch(CITIES + r"\n", result.stdout)
    if "auto" in line:
        assert "provider: cpu (" in result.stderr


def test_the_python_program(work: Path) -> None:
    pytest.importorskip("llguidance")
    result = run([sys.executable, "-c", block("python")], work)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(rf"^{CITIES}$", result.stdout, flags=re.MULTILINE)
    *_, first, second, reason = result.stdout.splitlines()
    assert int(first) == 0
    assert int(second) > 0
    assert reason in ("cancelled", "context", "stop")


def test_the_named_commands_of_a_session_exist() -> None:
    named = set(re.findall(r"`(/[a-z-]+)`", section()))
    assert len(named) > 5
    assert named <= set(command_names())
