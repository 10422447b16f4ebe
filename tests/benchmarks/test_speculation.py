"""The benchmark of guessing ahead, run for real on a few prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import speculation


def test_every_kind_of_text_is_measured(tiny_fp32: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert speculation.main([str(tiny_fp32), "--prompts", "4", "--new", "24", "--json"]) == 0
    found = {each["kind"]: each for each in json.loads(capsys.readouterr().out)}
    editing, greedy, drawn = found.values()
    assert all(1 <= each["prompts"] <= 4 and each["low"] <= each["ratio"] <= each["high"] for each in found.values())
    # a copy is foretold, text that may not repeat itself hardly
    assert editing["accepted"] > 2 * greedy["accepted"]
    assert greedy["different"] == editing["different"] == drawn["different"] == 0
    told = speculation._text(speculation._Found(**greedy))
    assert told.startswith("text without repeats, greedy: ")
    assert "in eight of ten" in told
