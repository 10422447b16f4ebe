"""adapter_config.json: what PEFT writes is read, what changes the mathematics is refused with key and value."""

from __future__ import annotations

from typing import Any

import adapters
import pytest
from peft import LoraConfig

from gemma_export.adapter.config import parse_config
from gemma_export.errors import ConfigError


def parse(**changes: Any) -> Any:
    config = {key: value for key, value in {**adapters.CONFIG, **changes}.items() if value != "absent"}
    return parse_config(config)


def written_by_peft(**arguments: Any) -> dict[str, Any]:
    """The JSON object that PEFT's save_pretrained makes of a configuration."""
    content = LoraConfig(task_type="CAUSAL_LM", **arguments).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in content.items()}


def test_what_peft_writes() -> None:
    found = parse_config(
        written_by_peft(
            r=12,
            lora_alpha=5,
            lora_dropout=0.1,
            use_rslora=True,
            use_dora=True,
            target_modules=["q_proj", "v_proj"],
            exclude_modules=["layers.0.self_attn.q_proj"],
            rank_pattern={"v_proj": 3},
            alpha_pattern={"layers.1.*": 7},
            layers_to_transform=[0, 2],
            layers_pattern="layers",
            modules_to_save=["norm"],
            base_model_name_or_path="google/gemma-2b",
            init_lora_weights="gaussian",
            fan_in_fan_out=True,
            bias="lora_only",
        )
    )
    assert (found.rank, found.alpha, found.rank_stabilized, found.weight_decomposed) == (12, 5.0, True, True)
    assert found.target_modules == ("q_proj", "v_proj")
    assert found.exclude_modules == ("layers.0.self_attn.q_proj",)
    assert (found.rank_pattern, found.alpha_pattern) == ({"v_proj": 3}, {"layers.1.*": 7.0})
    assert (found.layers, found.layer_lists, found.modules_to_save) == ((0, 2), ("layers",), ("norm",))
    assert found.base_model == "google/gemma-2b"


def test_every_key_of_peft_is_known() -> None:
    """A key that this PEFT has and the reader does not know would be accepted only by the luck of its default."""
    config = written_by_peft(target_modules=["q_proj"])
    for key in config:
        value = "something" if config[key] is None else config[key]
        message = ""
        try:
            parse_config({**config, key: value})
        except ConfigError as error:
            message = error.message
        assert "unknown key" not in message, key


@pytest.mark.parametrize(
    ("changes", "phrases"),
    [
        ({"peft_type": "PREFIX_TUNING"}, ["peft_type is 'PREFIX_TUNING'", "'LORA'"]),
        ({"peft_type": "IA3"}, ["'IA3'"]),
        ({"peft_type": "ADALORA"}, ["'ADALORA'"]),
        ({"peft_type": "absent"}, ["peft_type is None"]),
        ({"r": 0}, ["r must be an integer from 1", "found 0"]),
        ({"r": -4}, ["found -4"]),
        ({"r": 4.0}, ["found 4.0"]),
        ({"r": "absent"}, ["missing key 'r'"]),
        ({"lora_alpha": 0}, ["lora_alpha must be a number other than 0, found 0"]),
        ({"lora_alpha": "absent"}, ["lora_alpha", "found None"]),
        ({"lora_alpha": True}, ["lora_alpha", "found True"]),
        ({"rank_pattern": {"q_proj": 0}}, ["rank_pattern['q_proj']", "found 0"]),
        ({"rank_pattern": ["q_proj"]}, ["rank_pattern must be an object"]),
        ({"rank_pattern": {"(": 2}}, ["rank_pattern: '(' is no regular expression"]),
        # balanced only inside the expression that PEFT builds around it
        ({"rank_pattern": {"a)|(b": 2}}, ["no regular expression"]),
        # balanced alone, not inside
        ({"rank_pattern": {"(?i)q_proj": 2}}, ["no regular expression"]),
        ({"alpha_pattern": {"q_proj": 0}}, ["alpha_pattern['q_proj']", "found 0"]),
        ({"alpha_pattern": {"q_proj": "8"}}, ["found '8'"]),
        ({"target_modules": []}, ["target_modules must be"]),
        ({"target_modules": None}, ["target_modules must be"]),
        ({"target_modules": [1]}, ["target_modules must be a list of names"]),
        ({"target_modules": "*q_proj"}, ["target_modules: '*q_proj' is no regular expression"]),
        ({"target_modules": "x" * 30_000}, ["30000 characters"]),
        ({"target_modules": ".*q_proj", "layers_to_transform": [1]}, ["need a list in target_modules"]),
        ({"layers_to_transform": [-1]}, ["layers_to_transform must be"]),
        ({"layers_to_transform": "1"}, ["layers_to_transform must be"]),
        ({"modules_to_save": {"a": 1}}, ["modules_to_save must be"]),
        ({"modules_to_save": ["("]}, ["modules_to_save: '(' is no regular expression"]),
        ({"layers_pattern": ["(?P<idx>x)"], "layers_to_transform": 1}, ["layers_pattern"]),
        ({"use_dora": 1}, ["use_dora must be true or false, found 1"]),
        ({"use_rslora": "yes"}, ["use_rslora must be true or false"]),
        ({"bias": "some"}, ["bias must be none, all or lora_only, found 'some'"]),
        ({"lora_bias": True}, ["lora_bias is True", "mathematics"]),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights is 'pissa'", "base model"]),
        ({"init_lora_weights": "pissa_niter_16"}, ["'pissa_niter_16'"]),
        ({"init_lora_weights": "OLoRA"}, ["'OLoRA'"]),
        ({"init_lora_weights": "corda"}, ["'corda'"]),
        ({"init_lora_weights": "loftq"}, ["'loftq'"]),
        ({"init_lora_weights": "lora_ga"}, ["'lora_ga'"]),
        ({"init_lora_weights": 1}, ["init_lora_weights is 1"]),
        ({"trainable_token_indices": [1, 2]}, ["trainable_token_indices is [1, 2]"]),
        ({"target_parameters": ["experts.gate_up_proj"]}, ["target_parameters"]),
        ({"layer_replication": [[0, 2], [1, 3]]}, ["layer_replication is [[0, 2], [1, 3]]"]),
        ({"alora_invocation_tokens": [5]}, ["alora_invocation_tokens is [5]"]),
        ({"use_qalora": True}, ["use_qalora is True"]),
        ({"use_bdlora": {"nblocks": 2}}, ["use_bdlora"]),
        ({"kasa_config": {"beta": 1}}, ["kasa_config"]),
        ({"arrow_config": {"top_k": 3}}, ["arrow_config"]),
        ({"monteclora_config": {"num_samples": 8}}, ["monteclora_config"]),
        ({"megatron_config": {"a": 1}}, ["megatron_config"]),
        ({"use_frobnication": 0.5}, ["unknown key 'use_frobnication' is 0.5", "mathematics"]),
        ({"base_model_name_or_path": 3}, ["base_model_name_or_path must be a text"]),
    ],
)
def test_refusals_name_key_and_value(changes: dict[str, Any], phrases: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**changes)
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith("adapter_config.json: ")
    for phrase in phrases:
        assert phrase in caught.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {"use_frobnication": False, "frobnicator": None, "weights": [], "number": 0},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": False},
        {"loftq_config": {}, "megatron_core": "megatron.core", "runtime_config": {"ephemeral_gpu_offload": False}},
        {"velora_config": {"num_groups": 4}},
        {"alpha_pattern": None, "rank_pattern": None, "modules_to_save": None, "bias": "all"},
        {"layers_to_transform": []},
    ],
)
def test_what_does_not_change_the_merge(changes: dict[str, Any]) -> None:
    assert parse(**changes) == parse()


def test_alpha_may_be_any_number() -> None:
    assert parse(lora_alpha=0.5).alpha == 0.5
    assert parse(lora_alpha=-3).alpha == -3.0
