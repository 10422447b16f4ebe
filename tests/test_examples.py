"""The programs of examples/, run as they say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_runtime import Gemma

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: object, text: str = "") -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    result = subprocess.run(
        command, input=text, capture_output=True, text=True, encoding="utf-8", check=False, timeout=300
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_every_program_is_run_here() -> None:
    tested = set(re.findall(r'(?:run|EXAMPLES / )\(?"(\w+)', Path(__file__).read_text(encoding="utf-8")))
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_generate() -> None:
    assert "return" in run("generate")


def test_chat(tiny_fp32: Path) -> None:
    said = run("chat", tiny_fp32, text="Hi\n\nAnd you?\n").split("\n> ")
    assert len(said) == 4
    assert len(said[0]) > len("> ")
    assert "content is empty" in said[1]


def test_structured_output(tiny_fp32: Path) -> None:
    pytest.importorskip("llguidance")
    assert re.fullmatch(r"[1-5] stars: .*\n", run("structured_output", tiny_fp32, "A review: cold soup."))


def test_batch(tiny_fp32: Path) -> None:
    prompts = [f"x{number} = [{number}, " for number in range(10)]
    lines = run("batch", tiny_fp32, text="\n".join(prompts) + "\n\n").splitlines()
    model = Gemma(tiny_fp32)
    for prompt, line in zip(prompts, lines, strict=True):
        assert line == f"{prompt} ->{model.generate(prompt, max_new_tokens=32, stop=chr(10)).text}"


def test_fill_in_the_middle(tiny_fp32: Path, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("def add(a, b):\n    return # here\n\n\nprint(add(1, 2))\n", encoding="utf-8")
    text = run("fill_in_the_middle", tiny_fp32, tmp_path / "main.py", "# here")
    assert text.startswith("def add(a, b):\n    return ")
    assert text.endswith("\n\n\nprint(add(1, 2))\n")
    assert "# here" not in text


def test_stream_and_cancel(tiny_fp32: Path) -> None:
    assert re.search(r"\ncancelled: \d+ tokens at \d+ a second\n$", run("stream_and_cancel", tiny_fp32, "x", 0.2))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_ends_a_streamed_answer(tiny_fp32: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "stream_and_cancel.py"), str(tiny_fp32), "x", "300"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment)
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "\ncancelled: " in first + rest
