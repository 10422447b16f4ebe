"""Vision-language configurations and tensor names: what the text decoder's would be, or a refusal that says why."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from gemma_export.base_checkpoint import released_config
from gemma_export.checkpoint.check import check_tensors
from gemma_export.checkpoint.text_part import text_config, text_tensors
from gemma_export.errors import CheckpointError, ConfigError, GemmaExportError, MissingResourceError
from gemma_export.families import family_of
from gemma_export.tensors import StoredTensor
from gemma_export.variants import VARIANTS

LINEAR = {"factor": 8.0, "rope_type": "linear"}
# of the released config.json, as published: https://huggingface.co/google/gemma-3-4b-it, -12b-it, -27b-it
SECTIONS: dict[str, dict[str, Any]] = {
    "gemma3-4b-it": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": LINEAR,
        "sliding_window": 1024,
    },
    "gemma3-12b-it": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "model_type": "gemma3_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "rope_scaling": LINEAR,
        "sliding_window": 1024,
    },
    "gemma3-27b-it": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rope_scaling": LINEAR,
        "sliding_window": 1024,
    },
}


def nested(section: Any, **changes: Any) -> dict[str, Any]:
    whole = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": section,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model", "vision_use_head": False},
    }
    return {key: value for key, value in {**whole, **changes}.items() if value != "absent"}


def flat(section: Any, **changes: Any) -> dict[str, Any]:
    found = text_config(nested(section, **changes))
    assert found is not None
    return found


class Source:
    """Tensors of one element, each holding its place in the list."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.tensors = {name: StoredTensor("float32", (1,)) for name in names}

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        buffer[:] = bytes([self.names.index(name) + offset] * len(buffer))


@pytest.mark.parametrize("variant", SECTIONS)
def test_released_sizes_read_as_their_variants(variant: str) -> None:
    config = flat(SECTIONS[variant])
    spec, unread = family_of(config).parse_config(config)
    expected, _ = family_of(config).parse_config({**released_config(VARIANTS[variant]), "eos_token_id": [1, 106]})
    assert spec == expected
    assert unread == ()
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    assert config["torch_dtype"] == "bfloat16"
    assert not {"vision_config", "text_config", "image_token_index", "mm_tokens_per_image"} & config.keys()


@pytest.mark.parametrize("variant", SECTIONS)
def test_what_a_section_leaves_out_is_what_the_reference_assumes(variant: str) -> None:
    """Key by key, in the library's own reading of the whole file."""
    config = flat(SECTIONS[variant])
    reference = transformers.Gemma3Config.from_dict(nested(SECTIONS[variant])).text_config
    rotary = {
        "rope_theta": reference.rope_parameters["full_attention"]["rope_theta"],
        "rope_local_base_freq": reference.rope_parameters["sliding_attention"]["rope_theta"],
    }
    completed = set(config) - set(nested(SECTIONS[variant])) - set(SECTIONS[variant])
    assert {"vocab_size", "rope_theta", "rope_local_base_freq", "rms_norm_eps", "max_position_embeddings"} <= completed
    for key in completed - {"sliding_window_pattern"}:
        assert config[key] == (rotary[key] if key in rotary else getattr(reference, key)), key
    spec, _ = family_of(config).parse_config(config)
    types = ["sliding_attention" if window else "full_attention" for window in spec.windows]
    assert types == reference.layer_types
    assert (spec.vocab_size, spec.head_dim) == (reference.vocab_size, reference.head_dim)
    assert spec.rotary.factor == reference.rope_parameters["full_attention"]["factor"]


@pytest.mark.parametrize("config", [{}, {"model_type": "gemma3_text"}, {"model_type": "gemma", "text_config": {}}])
def test_other_configurations_are_left_alone(config: dict[str, Any]) -> None:
    assert text_config(config) is None


def test_a_flat_configuration_gets_nothing_assumed() -> None:
    config = {**flat(SECTIONS["gemma3-4b-it"])}
    del config["num_attention_heads"]
    with pytest.raises(ConfigError, match="missing key 'num_attention_heads'"):
        family_of(config).parse_config(config)


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_hidden_layers", "sliding_window"])
def test_what_the_released_files_always_say_is_never_assumed(key: str) -> None:
    config = flat({name: value for name, value in SECTIONS["gemma3-4b-it"].items() if name != key})
    with pytest.raises(ConfigError, match=f"missing key {key!r}"):
        family_of(config).parse_config(config)


def test_a_section_as_newer_releases_save_it() -> None:
    """With layer types and nested rotary parameters nothing is assumed beside them."""
    section = {
        **SECTIONS["gemma3-4b-it"],
        "rope_parameters": {
            "full_attention": {**LINEAR, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default"},
        },
        "layer_types": ["full_attention"] * 34,
    }
    del section["rope_scaling"]
    config = flat(section)
    assert "rope_theta" not in config
    assert "sliding_window_pattern" not in config
    spec, _ = family_of(config).parse_config(config)
    assert (spec.rotary.theta, spec.rotary.factor, spec.local_rotary.theta) == (5000.0, 8.0, 10000.0)
    assert set(spec.windows) == {0}


def test_whose_word_counts() -> None:
    section = {**SECTIONS["gemma3-4b-it"], "eos_token_id": 1, "pad_token_id": 7, "use_cache": False, "vocab_size": 300}
    config = flat(section, use_cache=True, vocab_size=9, pad_token_id=None, quantization_config={"a": 1}, note="mine")
    # of the whole model
    assert config["eos_token_id"] == [1, 106]
    assert config["quantization_config"] == {"a": 1}
    assert config["note"] == "mine"
    # of the section
    assert (config["pad_token_id"], config["use_cache"], config["vocab_size"]) == (7, False, 300)
    assert flat(SECTIONS["gemma3-4b-it"], tie_word_embeddings=False)["tie_word_embeddings"] is False
    assert flat({**SECTIONS["gemma3-4b-it"], "tie_word_embeddings": False})["tie_word_embeddings"] is False


def test_the_decoder_s_own_keys_are_read_from_the_section_alone() -> None:
    """As the reference does: what stands beside it is not the decoder's."""
    outer = {"rope_theta": 3.0, "rope_scaling": {**LINEAR, "factor": 2.0}, "final_logit_softcapping": 2.0}
    section = {name: value for name, value in SECTIONS["gemma3-4b-it"].items() if name != "rope_scaling"}
    config = flat(section, **outer, sliding_window=5)
    spec, _ = family_of(config).parse_config(config)
    assert (spec.rotary.theta, spec.rotary.factor, spec.final_softcap) == (1e6, 1.0, 0.0)
    assert max(spec.windows) == 1024


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (nested("absent"), "text_config must hold the text decoder's keys, found None"),
        (nested({}), "text_config must hold the text decoder's keys, found {}"),
        (nested([1]), r"text_config must hold the text decoder's keys, found \[1\]"),
        (nested({"model_type": "gemma4_text"}), "text_config.model_type must be 'gemma3_text', found 'gemma4_text'"),
        (
            nested({"model_type": "gemma3_text", "tie_word_embeddings": False}, tie_word_embeddings=True),
            "tie_word_embeddings is True, text_config.tie_word_embeddings is False",
        ),
    ],
)
def test_refused_configurations(config: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        text_config(config)
    assert caught.value.exit_code == 3
    assert caught.value.hint


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("language_model.model.", "language_model.lm_head.weight"),
        ("language_model.model.", "lm_head.weight"),
        ("model.language_model.", "lm_head.weight"),
    ],
)
def test_both_layouts_of_names(prefix: str, head: str) -> None:
    images = "model." if prefix.startswith("model.") else ""
    source = Source(
        f"{images}vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        f"{images}multi_modal_projector.mm_input_projection_weight",
        f"{prefix}layers.0.self_attn.q_proj.qweight",
        f"{prefix}embed_tokens.weight",
        head,
    )
    view = text_tensors(source)
    assert list(view.tensors) == [
        "model.layers.0.self_attn.q_proj.qweight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ]
    content = bytearray(2)
    view.read_into("lm_head.weight", 3, memoryview(content))
    assert bytes(content) == bytes([4 + 3] * 2)


@pytest.mark.parametrize(
    ("names", "kind", "match"),
    [
        (
            ("vision_tower.b", "multi_modal_projector.a"),
            MissingResourceError,
            r"no weights of the text decoder: expected language_model.model.\* or model.language_model.\*, found only "
            r"those of images \(2, first 'multi_modal_projector.a'\)",
        ),
        ((), MissingResourceError, "first 'none'"),
        (
            ("model.embed_tokens.weight", "vision_tower.a"),
            CheckpointError,
            r"tensors are called language_model.model.\* or .*; found 'model.embed_tokens.weight'",
        ),
        (
            ("language_model.model.norm.weight", "model.language_model.norm.weight"),
            CheckpointError,
            r"tensor 'model.language_model.norm.weight' is neither of the text decoder \(language_model.model.\*\)",
        ),
        (
            ("language_model.model.norm.weight", "model.layers.0.weight"),
            CheckpointError,
            "'model.layers.0.weight' is neither",
        ),
        (
            ("language_model.model.norm.weight", "lm_head.weight", "language_model.lm_head.weight"),
            CheckpointError,
            "'lm_head.weight' and 'language_model.lm_head.weight' are the same one",
        ),
    ],
)
def test_refused_names(names: tuple[str, ...], kind: type[GemmaExportError], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        text_tensors(Source(*names))
    assert caught.value.exit_code == (4 if kind is MissingResourceError else 3)
    assert caught.value.hint


def test_a_text_configuration_over_the_whole_models_tensors() -> None:
    with pytest.raises(CheckpointError, match=r"language_model\.model\.norm\.weight") as caught:
        check_tensors(Source("language_model.model.norm.weight"), {"model.norm.weight": (1,)})
    assert "take its own config.json, whose model_type is gemma3" in caught.value.hint
