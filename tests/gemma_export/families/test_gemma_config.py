"""config.json of Gemma 1: strict, explained, and bounded before anything is built."""

from __future__ import annotations

from typing import Any

import pytest

from gemma_export.errors import ConfigError
from gemma_export.families import FAMILIES, family_of

RELEASED_2B: dict[str, Any] = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.0.dev0",
    "use_cache": True,
    "vocab_size": 256000,
}
GEMMA = FAMILIES["gemma"]


def parse(**changes: Any) -> Any:
    config = {key: value for key, value in {**RELEASED_2B, **changes}.items() if value != "absent"}
    return GEMMA.parse_config(config)


def test_released_config() -> None:
    spec, unread = parse()
    assert unread == ()
    assert (spec.hidden_size, spec.head_dim, spec.num_key_value_heads) == (2048, 256, 1)
    assert spec.tie_word_embeddings
    assert spec.attention_scale == 1 / 16
    assert spec.eos_token_ids == (1,)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "absent", "hidden_activation": "gelu_pytorch_tanh"},
        {"hidden_activation": None},
    ],
)
def test_every_spelling_of_tanh_gelu(changes: dict[str, Any]) -> None:
    assert parse(**changes)[0] == parse()[0]


def test_nested_rotary_base() -> None:
    nested = {"rope_type": "default", "rope_theta": 5000.0}
    assert parse(rope_theta="absent", rope_parameters=nested)[0].rotary.theta == 5000.0


def test_a_default_rotary_scaling_is_none() -> None:
    assert parse(rope_scaling={"rope_type": "default"})[0] == parse()[0]


def test_null_is_absent_and_minus_one_is_no_padding() -> None:
    assert parse(tie_word_embeddings=None)[0].tie_word_embeddings
    assert parse(pad_token_id=-1)[0].pad_token_id == 0


def test_list_of_stop_ids() -> None:
    assert parse(eos_token_id=[1, 107])[0].eos_token_ids == (1, 107)


def test_unknown_key_is_reported_not_refused() -> None:
    assert parse(my_note="fine-tuned")[1] == ("my_note",)


@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "rope_theta",
        "max_position_embeddings",
        "hidden_act",
    ],
)
def test_no_default_for_an_architecture_number(key: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        parse(**{key: "absent"})
    assert caught.value.exit_code == 3
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be an integer from 1 to 1024, found 1000000000"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": 2048.0}, "hidden_size"),
        ({"head_dim": True}, "head_dim"),
        ({"head_dim": 255}, "even"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"hidden_act": "relu"}, "activation"),
        ({"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu"}, "activation"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"type": "linear", "factor": 8.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1.0}}, "one rotary base"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": 256000}, "eos_token_id"),
        ({"bos_token_id": -1}, "bos_token_id"),
        ({"eos_token_id": []}, "eos_token_id"),
        ({"bos_token_id": []}, "bos_token_id"),
    ],
)
def test_refusals_say_which_key(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse(**changes)


def test_unsupported_architecture() -> None:
    with pytest.raises(ConfigError, match=r"'llama'.*gemma"):
        family_of({"model_type": "llama"})
    with pytest.raises(ConfigError, match="None"):
        family_of({})


def test_tensor_shapes_are_the_decoders_parameters() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for changes in ({}, {"tie_word_embeddings": False}):
        spec, _ = parse(**changes)
        with FakeTensorMode(allow_non_fake_inputs=True):
            decoder = GEMMA.build(spec)
        found = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
        assert found == GEMMA.tensor_shapes(spec)
