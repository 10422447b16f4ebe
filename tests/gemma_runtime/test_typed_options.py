"""Options of an answer are known to type checkers and editors."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import get_type_hints

import pytest

import gemma_runtime
from gemma_runtime import AnswerKeywords, AnswerOptions, Constraint

CALLS = """
from gemma_runtime import Gemma

def calls(model: Gemma) -> None:
    model.generate("x", max_new_tokens=5, stop="a", stop_ids=(3,), logprobs=None)
    model.generate("x", max_tokens=5)
    model.stream("x", max_new_tokens="5")
    model.answer("x", stop=3)
    model.generate_many(["x"], sample=3)
    model.conversation().generate("x", seed=3)
    model.chat().send("x", temperature=0.7)
    model.graph.fil
"""


def test_keywords_are_the_fields_of_the_options() -> None:
    names = {"Constraint": Constraint, "threading": threading}
    fields = {field.name for field in dataclasses.fields(AnswerOptions)}
    assert get_type_hints(AnswerKeywords, localns=names) == get_type_hints(AnswerOptions, localns=names)
    assert set(AnswerKeywords.__annotations__) == fields
    assert AnswerKeywords.__required_keys__ == frozenset()


def test_a_type_checker_finds_wrong_options(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "calls.py").write_text(CALLS)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(tmp_path), "calls.py"]
    command += ["--follow-imports", "silent", "--ignore-missing-imports"]
    # mypy follows no import hook, by which an editable installation is found
    environment = {**os.environ, "MYPYPATH": str(Path(gemma_runtime.__file__).parents[1])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    found = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [line.split(":")[1] for line in found] == [str(line) for line in range(6, 13)], done.stdout + done.stderr
    assert 'Unexpected keyword argument "max_tokens" for "generate"' in found[0]
