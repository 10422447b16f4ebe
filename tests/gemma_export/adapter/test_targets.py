"""Matching of modules, ranks and scales against PEFT's own functions."""

from __future__ import annotations

import itertools
from typing import Any

import adapters
import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from gemma_export.adapter.config import AdapterConfig, parse_config
from gemma_export.adapter.targets import is_saved_whole, rank_and_scale, target_modules
from gemma_export.errors import CheckpointError

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
# two digits: layer 1 is no layer 11
LINEAR = [f"model.layers.{layer}.{kind}" for layer in range(12) for kind in KINDS]
MODULES = ["model.embed_tokens", *LINEAR, "lm_head"]


def configs(**changes: Any) -> tuple[AdapterConfig, LoraConfig]:
    """One configuration as we and as PEFT read it."""
    theirs = {key: value for key, value in {**adapters.CONFIG, **changes}.items() if key != "peft_type"}
    return parse_config({**adapters.CONFIG, **changes}), LoraConfig(**theirs)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["self_attn.q_proj", "down_proj"]},
        {"target_modules": ["model.layers.1.self_attn.q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens", "o_proj"]},
        {"target_modules": r".*\.(q|k)_proj"},
        {"target_modules": r"model\.layers\.1\..*"},
        {"target_modules": r"(?i).*Q_PROJ"},
        {"target_modules": ["q_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*\.1\..*"},
        {"target_modules": ["q_proj", "o_proj"], "modules_to_save": ["o_proj"]},
        {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["mlp"]},
        {"target_modules": ["q_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 11]},
        {"target_modules": ["q_proj"], "layers_to_transform": []},
        {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [1]},
        {"target_modules": ["model.layers.0.self_attn.q_proj", "k_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1, 3], "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["blocks"]},
    ],
    ids=str,
)
def test_targets_are_pefts(changes: dict[str, Any]) -> None:
    ours, theirs = configs(**changes)
    expected = {module for module in MODULES if check_target_module_exists(theirs, module)}
    # an excluded module is an object of PEFT's own that is false
    assert target_modules(ours, MODULES, LINEAR) == expected


@pytest.mark.parametrize("name", ["all-linear", "All-Linear"])
def test_all_linear_is_everything_but_embedding_and_head(name: str) -> None:
    ours, _ = configs(target_modules=name)
    assert target_modules(ours, MODULES, LINEAR) == set(LINEAR)
    ours, _ = configs(target_modules=name, exclude_modules=["down_proj"])
    assert target_modules(ours, MODULES, LINEAR) == {module for module in LINEAR if not module.endswith("down_proj")}


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (["q_proj", "query_key_value"], "'query_key_value'"),
        (["model.layers.12.self_attn.q_proj"], "'model.layers.12.self_attn.q_proj'"),
        (r".*\.c_attn", r"'.*\\.c_attn'"),
    ],
)
def test_a_target_that_the_model_lacks_is_named(target: Any, shown: str) -> None:
    ours, _ = configs(target_modules=target)
    with pytest.raises(CheckpointError) as caught:
        target_modules(ours, MODULES, LINEAR)
    assert caught.value.exit_code == 3
    assert shown in caught.value.message
    assert "embed_tokens, q_proj, k_proj, o_proj, gate_proj, down_proj, lm_head" in caught.value.message


PATTERNS = [
    {},
    {"q_proj": 2},
    {"proj": 2},
    {"layers.1.self_attn.q_proj": 2},
    {r"^model\.layers\.1\..*": 2, "q_proj": 3},
    {"q_proj": 3, r"^model\.layers\.1\..*": 2},
    {"q_proj|k_proj": 5},
    {r".*\.[0-4]\.self_attn\..*": 6, "down": 7},
]


@pytest.mark.parametrize("stabilized", [False, True])
@pytest.mark.parametrize(("ranks", "alphas"), list(itertools.product(PATTERNS, PATTERNS)))
def test_rank_and_scale_are_pefts(ranks: dict[str, int], alphas: dict[str, int], stabilized: bool) -> None:
    ours, theirs = configs(rank_pattern=ranks, alpha_pattern=alphas, use_rslora=stabilized)
    for module in MODULES:
        rank = theirs.rank_pattern.get(get_pattern_key(theirs.rank_pattern, module), theirs.r)
        alpha = theirs.alpha_pattern.get(get_pattern_key(theirs.alpha_pattern, module), theirs.lora_alpha)
        assert rank_and_scale(ours, module) == (rank, alpha / (rank**0.5 if stabilized else rank)), module


def test_modules_saved_whole() -> None:
    ours, _ = configs(modules_to_save=["norm", "mlp"])
    names = ["model.norm", "model.layers.0.input_layernorm", "model.layers.0.mlp.up_proj", "model.layers.0.self_attn"]
    assert [is_saved_whole(ours, name) for name in names] == [True, True, True, False]
