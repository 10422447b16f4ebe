"""config.json of Gemma 3: kinds of layers, two rotary bases under old keys and new ones; refusals with reasons."""

from __future__ import annotations

from typing import Any

import pytest
from reference_shapes import reference_shapes

from gemma_export.base_checkpoint import released_config
from gemma_export.config import Rotary
from gemma_export.errors import ConfigError
from gemma_export.families import FAMILIES
from gemma_export.variants import VARIANTS

# https://huggingface.co/google/gemma-3-1b-it
RELEASED_1B: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "use_cache": True,
    "vocab_size": 262144,
}
GEMMA3 = FAMILIES["gemma3"]
SIZES = ("gemma3-270m", "gemma3-1b", "gemma3-4b", "gemma3-12b", "gemma3-27b")
NESTED = {
    "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
OLD_KEYS = ("rope_theta", "rope_local_base_freq", "rope_scaling")
ABSENT = dict.fromkeys(OLD_KEYS, "absent")
# one layer in six sees everything
TYPES = [("sliding_attention" if (index + 1) % 6 else "full_attention") for index in range(26)]


def parse(**changes: Any) -> Any:
    config = {key: value for key, value in {**RELEASED_1B, **changes}.items() if value != "absent"}
    return GEMMA3.parse_config(config)


def scaled(kind: str, **entries: Any) -> dict[str, Any]:
    """The new keys with one kind of layer changed."""
    return {**ABSENT, "rope_parameters": {**NESTED, kind: {**NESTED[kind], **entries}}}


def test_released_config() -> None:
    spec, unread = parse()
    assert unread == ()
    expected, _ = GEMMA3.parse_config({**released_config(VARIANTS["gemma3-1b"]), "eos_token_id": [1, 106]})
    assert spec == expected
    assert [index for index, window in enumerate(spec.windows) if not window] == [5, 11, 17, 23]
    assert {window for window in spec.windows if window} == {512}
    assert (spec.rotary, spec.local_rotary) == (Rotary(theta=1e6, factor=1.0), Rotary(theta=1e4, factor=1.0))
    assert (spec.rotary_of(4), spec.rotary_of(5)) == (spec.local_rotary, spec.rotary)
    assert (spec.attention_softcap, spec.final_softcap) == (0.0, 0.0)
    assert (spec.post_norms, spec.qk_norm, spec.eos_token_ids) == (True, True, (1, 106))


@pytest.mark.parametrize("size", SIZES)
def test_factors_and_scales_of_the_sizes(size: str) -> None:
    spec, unread = GEMMA3.parse_config(released_config(VARIANTS[size]))
    assert unread == ()
    assert GEMMA3.parse_config(released_config(VARIANTS[f"{size}-it"])) == (spec, ())
    large = size in ("gemma3-4b", "gemma3-12b", "gemma3-27b")
    # layers with a window are never scaled
    assert (spec.rotary.factor, spec.local_rotary.factor) == (8.0 if large else 1.0, 1.0)
    assert spec.attention_scale == (168 if size == "gemma3-27b" else 256) ** -0.5
    assert spec.vocab_size == (262208 if large else 262144)


@pytest.mark.parametrize("size", SIZES)
def test_tensors_are_those_of_the_reference(size: str) -> None:
    config = released_config(VARIANTS[size])
    spec, _ = GEMMA3.parse_config(config)
    assert GEMMA3.tensor_shapes(spec) == reference_shapes(config)


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_the_tensors(size: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    spec, _ = GEMMA3.parse_config(released_config(VARIANTS[size]))
    with FakeTensorMode(allow_non_fake_inputs=True):
        decoder = GEMMA3.build(spec)
    assert {name: tuple(value.shape) for name, value in decoder.named_parameters()} == GEMMA3.tensor_shapes(spec)


@pytest.mark.parametrize(
    "changes",
    [
        # the newer keys alone
        {**ABSENT, "rope_parameters": NESTED},
        scaled("full_attention", factor=1.0),
        scaled("full_attention", rope_type="linear", factor=1.0),
        # beside the old ones, equal
        {"rope_parameters": NESTED},
        {"rope_parameters": {"sliding_attention": NESTED["sliding_attention"]}},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": "absent"},
        # kinds of layers
        {"sliding_window_pattern": "absent", "layer_types": TYPES},
        {"sliding_window_pattern": "absent", "_sliding_window_pattern": 6},
        {"layer_types": TYPES},
        {"layer_types": TYPES, "_sliding_window_pattern": 6},
        {"final_logit_softcapping": "absent", "attn_logit_softcapping": "absent"},
    ],
)
def test_other_spellings_of_the_same(changes: dict[str, Any]) -> None:
    assert parse(**changes) == (parse()[0], ())


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"rope_scaling": {"type": "linear", "factor": 8}},
        {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 8.0}},
        scaled("full_attention", rope_type="linear", factor=8.0),
        {
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}},
        },
    ],
)
def test_linear_scaling_is_of_layers_without_a_window(changes: dict[str, Any]) -> None:
    spec, unread = parse(**changes)
    assert unread == ()
    assert (spec.rotary, spec.local_rotary) == (Rotary(theta=1e6, factor=8.0), Rotary(theta=1e4, factor=1.0))


def test_scaling_of_layers_with_a_window_is_taken_where_it_is_asked_for() -> None:
    spec, _ = parse(**scaled("sliding_attention", rope_type="linear", factor=2.0))
    assert (spec.rotary.factor, spec.local_rotary.factor) == (1.0, 2.0)


def test_layer_types_come_before_the_pattern() -> None:
    spec, _ = parse(layer_types=["full_attention"] * 25 + ["sliding_attention"], sliding_window_pattern=2)
    assert spec.windows == (0,) * 25 + (512,)


def test_a_final_cap() -> None:
    assert parse(final_logit_softcapping=30.0)[0].final_softcap == 30.0


@pytest.mark.parametrize(
    "key",
    [
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "query_pre_attn_scalar"),
        *("sliding_window", "rope_theta", "rope_local_base_freq"),
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
        ({"sliding_window_pattern": "absent"}, "neither layer_types nor sliding_window_pattern says which layers"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern must be an integer from 1 to 1024, found 0"),
        ({"layer_types": TYPES[:-1]}, "layer_types must have one entry for each of 26 layers, found 25 entries"),
        ({"layer_types": ["global"] * 26}, "unknown kind 'global', expected sliding_attention or full_attention"),
        ({"_sliding_window_pattern": 3}, "sliding_window_pattern = 6 and _sliding_window_pattern = 3 contradict"),
        ({"query_pre_attn_scalar": 10**400}, "query_pre_attn_scalar must be a number above 0.001 and up to"),
        ({"query_pre_attn_scalar": 1e-300}, "query_pre_attn_scalar must be a number above 0.001 and up to"),
        # old and new keys in conflict
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 5000.0}}},
            r"one rotary base needed .*, found rope_theta = 1e\+06, rope_parameters.full_attention.rope_theta = 5000",
        ),
        (
            {"rope_parameters": {"sliding_attention": {"rope_theta": 5000.0}}},
            "one rotary base of layers with a window .*, found rope_local_base_freq = 10000, "
            "rope_parameters.sliding_attention.rope_theta = 5000",
        ),
        (
            {
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0}},
            },
            "one rotary factor needed, found rope_scaling = 8, rope_parameters.full_attention = 4",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_parameters": NESTED},
            "one rotary factor needed, found rope_scaling = 8, rope_parameters.full_attention = 1",
        ),
        # one of two, or none
        (
            {**ABSENT, "rope_parameters": {"full_attention": NESTED["full_attention"]}},
            r"needed in rope_local_base_freq or rope_parameters\.sliding_attention\.rope_theta, found neither",
        ),
        (ABSENT, r"needed in rope_theta or rope_parameters\.full_attention\.rope_theta, found neither"),
        # the shape of newer configurations of other families
        ({"rope_parameters": {"rope_theta": 1e6}}, "must hold objects for full_attention and sliding_attention"),
        ({"rope_parameters": {}}, "must hold objects for full_attention and sliding_attention"),
        ({"rope_parameters": {"full_attention": 5}}, "rope_parameters.full_attention must be an object, found 5"),
        # scaling that is not implemented
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "rope_scaling: type yarn: it changes the mathematics"),
        ({"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 8.0}}, "type dynamic, linear"),
        ({"rope_scaling": {"rope_type": 5}}, "rope_scaling: type 5: it changes"),
        (scaled("full_attention", rope_type="longrope"), "rope_parameters.full_attention: type longrope"),
        (scaled("full_attention", low_freq_factor=1), "rope_parameters.full_attention: keys low_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor must be a number above 0.0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope_scaling.factor must be a number above 0.0"),
        ({"rope_scaling": {"factor": 8.0}}, "rope_scaling has factor 8.0 and no type that uses one"),
        ({"rope_scaling": 8.0}, "rope_scaling must be an object, found 8.0"),
        ({"rope_theta": -1.0}, "rope_theta must be a number above 0.0"),
        ({"rope_local_base_freq": True}, "rope_local_base_freq must be a number above 0.0"),
        (scaled("full_attention", rope_theta="x"), "rope_parameters.full_attention.rope_theta must be a number"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0: it changes the mathematics"),
        ({"final_logit_softcapping": 0}, "final_logit_softcapping must be a number above 0.0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"hidden_activation": "silu"}, "unsupported activation"),
    ],
)
def test_refusals_say_which_key(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        parse(**changes)
    assert caught.value.exit_code == 3
    assert caught.value.hint
