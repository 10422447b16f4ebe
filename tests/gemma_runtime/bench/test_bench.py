"""The built-in model measured for real; figures are not asserted, only that they are there and belong together."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from json_schemas import validated

from gemma_runtime.bench import measure, run_bench
from gemma_runtime.bench.engine import Engine
from gemma_runtime.bench.found import Plan
from gemma_runtime.bench.text import benchmark_text
from gemma_runtime.errors import ManifestError, PromptError

SMALL: dict[str, Any] = {"contexts": (12, 24), "prompt": 16, "new": 4, "rounds": 2}


def test_json(tiny_fp32: Path) -> None:
    told: list[str] = []
    text = run_bench(tiny_fp32, **SMALL, as_json=True, on_progress=told.append)
    assert text.isascii()
    found = validated(text, "gemma_runtime/bench")
    assert [row["tokens"] for row in found["prefill"]] == [12, 16, 24, 128]
    assert [row["context"] for row in found["decode"]] == [12, 24]
    assert all(len(row["tokens_per_second"]["rounds"]) == 2 for row in found["prefill"] + found["decode"])
    assert found["load"]["first_token_seconds"] > found["load"]["seconds"] > 0
    assert found["folder"]["file_bytes"] > 14_000_000
    assert found["memory"]["before_load"] < found["memory"]["after_load"] <= found["memory"]["peak"]
    assert "round 2 of 2: 24 tokens, then 4 new ones" in told


def test_what_auto_has_chosen_is_told(tiny_fp32: Path) -> None:
    told: dict[str, list[str]] = {"auto": [], "cpu": []}
    for provider, lines in told.items():
        text = run_bench(tiny_fp32, **SMALL, provider=provider, as_json=True, on_progress=lines.append)
        assert validated(text, "gemma_runtime/bench")["folder"]["provider"] == "cpu"
    (line,) = (line for line in told["auto"] if line.startswith("provider: "))
    assert re.fullmatch(r"provider: cpu \(this folder \(ort, fp32\) runs on cpu.*\)", line)
    assert not any(line.startswith("provider: ") for line in told["cpu"])


def test_profile_names_the_operators_of_a_step(tiny_fp32: Path) -> None:
    profile, longest = validated(run_bench(tiny_fp32, **SMALL, as_json=True), "gemma_runtime/bench")["profiles"]
    calls = {row["operator"]: row["calls"] for row in profile["operators"]}
    # four layers of five products each, queries, keys and values in one; and the head
    assert calls["GroupQueryAttention"] == 4
    (matmul,) = (row for row in profile["operators"] if "MatMul" in row["operator"])
    assert matmul["calls"] == 21
    # all 3.67 million weights in float32 but the norms': the tied table is read as the head
    assert 14.5e6 < matmul["weight_bytes"] < 14.7e6
    assert matmul["weight_bytes"] == profile["matmul_weight_bytes"]
    assert 0 < profile["matmul_share"] < 1
    assert (profile["steps"], profile["context"]) == (4, 12)
    assert longest["context"] == 24
    assert longest["matmul_weight_bytes"] == profile["matmul_weight_bytes"]


def test_text(tiny_fp32: Path) -> None:
    text = run_bench(tiny_fp32, **{**SMALL, "contexts": (12, 100_000)})
    assert "left out        100000 tokens: more than this folder's context takes" in text
    assert "behind a prompt of 128 tokens" in text
    rows = [line.split() for line in text.splitlines()]
    assert "to" in next(row for row in rows if row[:1] == ["12"])
    assert any("MatMul" in row[0] and row[1] == "21" for row in rows if row)
    assert "GB/s" in text


def test_times_of_a_device_are_told_apart(tiny_fp32: Path) -> None:
    plan = Plan(provider="cpu", threads=1, contexts=(4,), prompt=4, new=2, rounds=1)
    found = measure.measure(tiny_fp32, plan, lambda _: None)
    assert "does not wait for them" not in benchmark_text(found)
    device = dataclasses.replace(found, folder=dataclasses.replace(found.folder, provider="cuda"))
    assert "does not wait for them" in benchmark_text(device)
    assert "cuda, threads: 1" in benchmark_text(device)


def test_every_prompt_is_new(tiny_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[tuple[int, ...]] = []

    class Recording(Engine):
        def start(self, ids: Sequence[int], capacity: int) -> int:
            prompts.append(tuple(ids))
            return super().start(ids, capacity)

    monkeypatch.setattr(measure, "Engine", Recording)
    run_bench(tiny_fp32, contexts=(8,), prompt=8, new=2, rounds=3)
    # the first token's, then 8 and 128 tokens in each round, then the profile's
    assert [len(prompt) for prompt in prompts] == [128, 8, 128, 8, 128, 8, 128, 8]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"rounds": 0}, "rounds of a benchmark must be 1 or above, found 0"),
        ({"contexts": (8, -1)}, "contexts of a benchmark must be 1 or above, found 8, -1"),
        ({"contexts": ()}, "contexts of a benchmark must be 1 or above, found none"),
        ({"threads": 0}, "threads of a benchmark must be 1 or above"),
        ({"contexts": (100_000,)}, "no context of 100000 tokens leaves room for 4 new ones"),
    ],
)
def test_numbers_that_cannot_be_measured(tiny_fp32: Path, changes: dict[str, Any], phrase: str) -> None:
    with pytest.raises(PromptError, match=phrase) as error:
        run_bench(tiny_fp32, **{**SMALL, **changes})
    assert error.value.hint


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="nowhere"):
        run_bench(tmp_path / "nowhere")
