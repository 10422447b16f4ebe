"""Tensor names of adapter files: with and without the adapter's name, whole modules, strangers."""

from __future__ import annotations

import pytest

from gemma_export.adapter.names import sort_names
from gemma_export.errors import CheckpointError

Q, EMBED = "model.layers.0.self_attn.q_proj", "model.embed_tokens"
BASE = {f"{EMBED}.weight": (9, 4), f"{Q}.weight": (6, 4), "model.norm.weight": (4,), "lm_head.weight": (9, 4)}


@pytest.mark.parametrize("adapter", ["", ".default", ".my-adapter_2", ".weight"])
def test_factors_with_and_without_the_adapters_name(adapter: str) -> None:
    factors = {part: f"base_model.model.{Q}.lora_{part}{adapter}.weight" for part in "AB"}
    norms = f"base_model.model.{Q}.lora_magnitude_vector{adapter}"
    table = {part: f"base_model.model.{EMBED}.lora_embedding_{part}{adapter}" for part in "AB"}
    found = sort_names([*factors.values(), norms, *table.values()], BASE)
    assert found.parts == {Q: {**factors, "magnitude": norms}, EMBED: table}
    assert found.embeddings == {EMBED}
    assert found.whole == {}


@pytest.mark.parametrize("suffix", ["", ".weight", ".default", ".default.weight"])
def test_magnitudes_of_old_and_new_releases(suffix: str) -> None:
    name = f"base_model.model.{Q}.lora_magnitude_vector{suffix}"
    assert sort_names([name], BASE).parts == {Q: {"magnitude": name}}


@pytest.mark.parametrize("wrapper", ["", ".base_layer", ".modules_to_save", ".modules_to_save.default"])
def test_whole_tensors(wrapper: str) -> None:
    name = f"base_model.model.lm_head{wrapper}.weight"
    assert sort_names([name], BASE).whole == {"lm_head.weight": name}


@pytest.mark.parametrize(
    ("name", "phrases"),
    [
        ("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight", ["no module model.layers.7", "q_proj"]),
        ("base_model.model.transformer.h.0.attn.c_attn.lora_B.default.weight", ["c_attn", "embed_tokens, q_proj"]),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", ["no tensor of the base model"]),
        (f"base_model.model.{Q}.lora_B.bias", ["no tensor of the base model"]),
        (f"base_model.model.{Q}.bias", ["no tensor"]),
        ("base_model.model.score.weight", ["no tensor"]),
        (f"{Q}.lora_A.weight", ["base_model.model."]),
        (f"base_model.model.{Q}.lora_A.a.b.weight", ["no tensor"]),
        ("prompt_embeddings", ["no tensor"]),
        ("\x1b[31mred", [r"'\x1b[31mred'"]),
    ],
)
def test_strangers_are_named(name: str, phrases: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        sort_names([name], BASE)
    assert caught.value.exit_code == 3
    for phrase in phrases:
        assert phrase in caught.value.message
    assert "\x1b" not in caught.value.message


def test_two_adapters_in_one_file() -> None:
    names = [f"base_model.model.{Q}.lora_A.{adapter}.weight" for adapter in ("first", "second")]
    with pytest.raises(CheckpointError, match=r"first.*second.*twice"):
        sort_names(names, BASE)
    with pytest.raises(CheckpointError, match="twice"):
        sort_names(["base_model.model.lm_head.weight", "base_model.model.lm_head.base_layer.weight"], BASE)
