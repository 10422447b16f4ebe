"""config.json of Gemma 2: which layers have a window, both soft caps, the scale of attention; refusals with reasons."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from reference_shapes import reference_shapes

from gemma_export.base_checkpoint import released_config
from gemma_export.errors import ConfigError
from gemma_export.families import FAMILIES
from gemma_export.planning import ExportPlan, plan_export
from gemma_export.request import ExportRequest
from gemma_export.variants import VARIANTS

# https://huggingface.co/google/gemma-2-2b
RELEASED_2B: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "initializer_range": 0.02,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "torch_dtype": "float32",
    "transformers_version": "4.42.4",
    "use_cache": True,
    "vocab_size": 256000,
}
GEMMA2 = FAMILIES["gemma2"]
SIZES = ("gemma2-2b", "gemma2-9b", "gemma2-27b")


def parse(**changes: Any) -> Any:
    config = {key: value for key, value in {**RELEASED_2B, **changes}.items() if value != "absent"}
    return GEMMA2.parse_config(config)


def test_released_config() -> None:
    spec, unread = parse()
    assert unread == ()
    assert spec == GEMMA2.parse_config(released_config(VARIANTS["gemma2-2b"]))[0]
    assert spec.windows == (4096, 0) * 13
    assert (spec.attention_softcap, spec.final_softcap) == (50.0, 30.0)
    assert spec.attention_scale == 1 / 16
    assert spec.rotary == spec.local_rotary
    assert (spec.post_norms, spec.qk_norm) == (True, False)


def test_the_largest_scales_by_its_width_and_not_by_its_heads() -> None:
    spec, _ = GEMMA2.parse_config(released_config(VARIANTS["gemma2-27b"]))
    assert spec.attention_scale == 144**-0.5
    assert (spec.head_dim, spec.hidden_size // spec.num_attention_heads) == (128, 144)


@pytest.mark.parametrize("size", SIZES)
def test_all_variants_of_a_size_are_one_architecture(size: str) -> None:
    spec, _ = GEMMA2.parse_config(released_config(VARIANTS[size]))
    for name in (f"{size}-it", size.replace("gemma2", "shieldgemma")):
        assert GEMMA2.parse_config(released_config(VARIANTS[name])) == (spec, ())


@pytest.mark.parametrize("size", SIZES)
def test_tensors_are_those_of_the_reference(size: str) -> None:
    config = released_config(VARIANTS[size])
    spec, _ = GEMMA2.parse_config(config)
    assert GEMMA2.tensor_shapes(spec) == reference_shapes(config)


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_the_tensors(size: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    spec, _ = GEMMA2.parse_config(released_config(VARIANTS[size]))
    with FakeTensorMode(allow_non_fake_inputs=True):
        decoder = GEMMA2.build(spec)
    assert {name: tuple(value.shape) for name, value in decoder.named_parameters()} == GEMMA2.tensor_shapes(spec)


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window_size": 4096},
        {"sliding_window_pattern": 2},
        {"layer_types": ["sliding_attention", "full_attention"] * 13},
        {"rope_theta": "absent", "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_parameters": {"rope_theta": 10000.0}},
        {"rope_parameters": {}},
        {"rope_scaling": {"type": "default"}},
        {"hidden_act": "absent"},
        {"hidden_activation": None},
        {"use_bidirectional_attention": False},
    ],
)
def test_other_spellings_of_the_same(changes: dict[str, Any]) -> None:
    assert parse(**changes) == (parse()[0], ())


def test_layer_types_come_before_the_period() -> None:
    types = ["full_attention"] + ["sliding_attention"] * 25
    assert parse(layer_types=types, sliding_window=7)[0].windows == (0, *[7] * 25)


def test_no_layer_with_a_window_needs_none() -> None:
    spec, unread = parse(layer_types=["full_attention"] * 26, sliding_window=None)
    assert spec.windows == (0,) * 26
    assert unread == ()


@pytest.mark.parametrize("key", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_null_means_no_cap(key: str) -> None:
    spec, _ = parse(**{key: None})
    assert 0.0 in (spec.attention_softcap, spec.final_softcap)
    assert {spec.attention_softcap, spec.final_softcap} & {50.0, 30.0}


@pytest.mark.parametrize(
    "key",
    [
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "max_position_embeddings"),
        *("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window"),
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
        ({"sliding_window_size": 2048}, "sliding_window is 4096 and sliding_window_size 2048"),
        ({"sliding_window_pattern": 3}, "sliding_window_pattern is 3: it changes the mathematics"),
        ({"sliding_window": 0}, "sliding_window must be an integer from 1 to 16777216, found 0"),
        ({"sliding_window": 4096.0}, "sliding_window must be an integer"),
        (
            {"layer_types": ["full_attention"]},
            "layer_types must have one entry for each of 26 layers, found 1 entries",
        ),
        ({"layer_types": "full_attention"}, "for each of 26 layers, found 'full_attention'"),
        (
            {"layer_types": ["chunked_attention"] * 26},
            "unknown kind 'chunked_attention', expected sliding_attention or full_attention",
        ),
        ({"attn_logit_softcapping": 0.0}, "attn_logit_softcapping must be a number above 0.001 and up to"),
        ({"attn_logit_softcapping": True}, "attn_logit_softcapping must be a number"),
        ({"final_logit_softcapping": -30.0}, "final_logit_softcapping must be a number above 0.0"),
        ({"final_logit_softcapping": float("nan")}, "final_logit_softcapping must be a number"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be a number above 0.0"),
        ({"query_pre_attn_scalar": "256"}, "query_pre_attn_scalar must be a number"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "found rope_theta = 10000, rope_parameters.rope_theta = 5"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "rope_parameters must be an object of rope_type"),
        ({"rope_parameters": [1]}, r"rope_parameters must be an object of rope_type default, found \[1\]"),
        ({"rope_parameters": {"beta_fast": 1}}, "rope_parameters has keys that are not implemented: beta_fast"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "rope_scaling is .* changes the mathematics"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"hidden_activation": "gelu"}, "unsupported activation"),
        ({"hidden_act": "absent", "hidden_activation": "absent"}, "missing key 'hidden_act'"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads, found 8 and 3"),
        ({"head_dim": 255}, "head_dim must be even"),
        ({"eos_token_id": 256000}, "eos_token_id must be token ids from 0 to 255999"),
    ],
)
def test_refusals_say_which_key(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        parse(**changes)
    assert caught.value.exit_code == 3
    assert caught.value.hint


def test_neither_rotary_key() -> None:
    with pytest.raises(ConfigError, match=r"needed in rope_theta or rope_parameters\.rope_theta, found neither"):
        parse(rope_theta="absent")


def test_a_variant_s_name_vouches_for_its_mathematics(tmp_path: Path) -> None:
    """Sizes alone do not tell a 27B whose products are scaled by its head_dim."""
    config = {**released_config(VARIANTS["tiny2"]), "query_pre_attn_scalar": 64}
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    request = ExportRequest(variant="tiny2", checkpoint=tmp_path / "model", synthetic_seed=0, output=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"not variant tiny2: attention_scale is 0\.125, expected 0\.144"):
        plan_export(request)
    plan_export(dataclasses.replace(request, variant=None))


def _plan_of(variant: str, root: Path, **changes: Any) -> ExportPlan:
    """What an export under the variant's name makes of its own config.json with changes."""
    (root / "model").mkdir()
    (root / "model/config.json").write_text(json.dumps({**released_config(VARIANTS[variant]), **changes}))
    return plan_export(ExportRequest(variant=variant, checkpoint=root / "model", synthetic_seed=0, output=root / "out"))


@pytest.mark.parametrize("scalar", [224, 256])
def test_both_scales_that_a_shieldgemma_9b_may_have(scalar: int, tmp_path: Path) -> None:
    """Under its name, without which its folder would not be taken for one that judges texts."""
    plan = _plan_of("shieldgemma-9b", tmp_path, query_pre_attn_scalar=scalar)
    assert plan.spec.attention_scale == scalar**-0.5
    assert plan.variant is not None
    assert plan.variant.name == "shieldgemma-9b"
    notice = (
        "config.json: query_pre_attn_scalar is 224, where 256 is usual of shieldgemma-9b: exported with 224, which is "
        "what PyTorch computes of this checkpoint"
    )
    assert [text for text in plan.warnings if "query_pre_attn_scalar" in text] == ([notice] if scalar == 224 else [])


@pytest.mark.parametrize(
    ("variant", "scalar", "expected"),
    [("shieldgemma-9b", 225, 256), ("shieldgemma-2b", 224, 256), ("gemma2-9b-it", 224, 256), ("gemma2-27b", 128, 144)],
)
def test_another_scale_is_another_model(variant: str, scalar: int, expected: int, tmp_path: Path) -> None:
    match = f"not variant {variant}: attention_scale is {scalar**-0.5}, expected {expected**-0.5}"
    with pytest.raises(ConfigError, match=re.escape(match)):
        _plan_of(variant, tmp_path, query_pre_attn_scalar=scalar)
