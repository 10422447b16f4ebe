"""Regular expressions that never end are refused, wherever they stand; those that end are left to the matching."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import adapters
import pytest

from gemma_export.adapter import open_adapter, pattern_guard, plan_merge
from gemma_export.adapter.config import parse_config
from gemma_export.adapter.pattern_guard import check_patterns
from gemma_export.errors import ConfigError, ResourceExhaustedError

MODULES = [f"model.layers.{layer}.self_attn.{kind}" for layer in range(12) for kind in ("q_proj", "o_proj")]
ENDLESS = "(.*.*)*x"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"target_modules": ENDLESS}, "target_modules"),
        # no group in a group, yet a power of the name's length
        ({"target_modules": ".*.*.*.*.*.*.*.*.*x"}, "target_modules"),
        # a stack that would fill the memory first
        ({"target_modules": "(?:x?){4000000000}"}, "target_modules"),
        ({"exclude_modules": ENDLESS}, "exclude_modules"),
        ({"rank_pattern": {"q_proj": 4, ENDLESS: 4}}, "rank_pattern"),
        ({"alpha_pattern": {ENDLESS: 8}}, "alpha_pattern"),
        ({"modules_to_save": ["norm", ENDLESS]}, "modules_to_save"),
        ({"layers_pattern": [ENDLESS], "layers_to_transform": 1}, "layers_pattern"),
    ],
    ids=str,
)
def test_an_endless_expression_is_named(changes: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern_guard, "_LIMIT", 1.0)
    config = parse_config({**adapters.CONFIG, **changes})
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        check_patterns(config, MODULES)
    assert time.monotonic() - began < 30
    assert caught.value.exit_code == 3
    text = changes[key] if isinstance(changes[key], str) else next(item for item in changes[key] if item[0] in ".(")
    assert f"{key}: {text!r}" in caught.value.message
    assert "do not trust" in caught.value.hint


def test_a_merge_is_planned_only_after_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern_guard, "_LIMIT", 1.0)
    shapes = {"model.embed_tokens.weight": (6, 4), **{f"{module}.weight": (4, 4) for module in MODULES}}
    weights = adapters.tensors(shapes, kinds=("q_proj",))
    with pytest.raises(ConfigError, match="rank_pattern"):
        plan_merge(open_adapter(adapters.write(tmp_path / "a", weights, rank_pattern={ENDLESS: 4})), shapes, tied=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "|".join(MODULES * 10)},
        {"target_modules": r".*\.(q|k)_proj", "rank_pattern": {r"^model\.layers\.[0-4]\..*": 2}},
        {"target_modules": r"model(\.\w+)+", "modules_to_save": ["norm|lm_head"]},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_expressions_of_real_adapters_pass(changes: dict[str, Any]) -> None:
    check_patterns(parse_config({**adapters.CONFIG, **changes}), MODULES)


def test_names_alone_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "run", refuse)
    plain = {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "modules_to_save": ["lm_head"]}
    check_patterns(parse_config({**adapters.CONFIG, **plain}), MODULES)
    with pytest.raises(ResourceExhaustedError, match="no process can be started") as caught:
        check_patterns(parse_config({**adapters.CONFIG, "target_modules": ".*q_proj"}), MODULES)
    assert caught.value.exit_code == 5
