"""Gemma 3 text decoders: normalised queries and keys, five layers with a window to one without, two rotary bases.

The text part of a vision-language checkpoint has the same layers (gemma_export.checkpoint.text_part takes it out).
Source: https://arxiv.org/abs/2503.19786 and
https://github.com/google/gemma_pytorch/blob/main/gemma/config.py (get_config_for_1b, _4b, _12b, _27b_v3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma_export.config import DecoderSpec
from gemma_export.errors import ConfigError
from gemma_export.families.config_reader import ConfigReader
from gemma_export.families.decoder_config import (
    COMMON_IGNORED,
    SMALLEST,
    check_activation,
    layer_windows,
    sizes,
    softcap,
)
from gemma_export.families.decoder_parts import build_decoder, decoder_tensors, key_value_states
from gemma_export.families.family import Family
from gemma_export.families.rotary_config import global_and_local_rotary

__all__ = ["GEMMA3"]

# what the released checkpoints of all sizes say alike
_CONSTANTS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window_pattern": 6,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
# keys under which the mathematics stays Gemma 3's, and the values that leave it so. The reference reads no softcap of
# attention in this family, whatever the configuration says.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "attn_logit_softcapping": (),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, 1.0),
    "quantization_config": (),
    "use_bidirectional_attention": (False,),
}


def _parse_config(config: Mapping[str, Any]) -> tuple[DecoderSpec, tuple[str, ...]]:
    read = ConfigReader(config)
    read.ignore(*COMMON_IGNORED)
    read.neutral(_NEUTRAL)
    check_activation(read)
    found = sizes(read)
    rotary, local_rotary = global_and_local_rotary(read)
    spec = DecoderSpec(
        family="gemma3",
        **found,
        # 27B: 168, which is hidden_size / num_attention_heads, and not its head_dim of 128
        attention_scale=read.number("query_pre_attn_scalar", low=SMALLEST, high=1e6) ** -0.5,
        attention_softcap=0.0,
        final_softcap=softcap(read, "final_logit_softcapping") if read.has("final_logit_softcapping") else 0.0,
        windows=layer_windows(read, num_layers=found["num_hidden_layers"], period=_period(read)),
        rotary=rotary,
        local_rotary=local_rotary,
        post_norms=True,
        qk_norm=True,
        computes_rotary=True,
    )
    return spec, read.unread()


def _period(read: ConfigReader) -> int | None:
    """Every so many layers one sees everything: configs before layer_types say so, later ones with an underscore."""
    found = {
        key: read.integer(key, low=1, high=1024)
        for key in ("sliding_window_pattern", "_sliding_window_pattern")
        if read.optional(key) is not None
    }
    if len(set(found.values())) > 1:
        both = " and ".join(f"{key} = {value}" for key, value in found.items())
        raise ConfigError(
            f"config.json: {both} contradict each other", hint="Keep the one of the published config.json."
        )
    return next(iter(found.values()), None)


GEMMA3 = Family(
    name="gemma3",
    model_type="gemma3_text",
    constants=_CONSTANTS,
    parse_config=_parse_config,
    tensor_shapes=decoder_tensors,
    cache_states=key_value_states,
    build=build_decoder,
)
