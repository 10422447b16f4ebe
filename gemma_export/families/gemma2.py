"""Gemma 2 and ShieldGemma: norms before and behind each branch, soft-capped logits, a window on every other layer.

Source: https://arxiv.org/abs/2408.00118, https://arxiv.org/abs/2407.21772 and
https://github.com/google/gemma_pytorch/blob/main/gemma/config.py (get_config_for_2b_v2, _9b, _27b).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma_export.config import DecoderSpec, Rotary
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
from gemma_export.families.rotary_config import flat_rotary

__all__ = ["GEMMA2"]

# what the released checkpoints of all sizes say alike
_CONSTANTS = {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
# keys under which the mathematics stays Gemma 2's, and the values that leave it so
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, 1.0),
    "quantization_config": (),
    "rope_scaling": ({"rope_type": "default"}, {"type": "default"}),
    "_sliding_window_pattern": (2,),
    "sliding_window_pattern": (2,),
    "use_bidirectional_attention": (False,),
}
# windows are on layers 0, 2, ...: configs of the first releases leave it to the reference
_PERIOD = 2


def _parse_config(config: Mapping[str, Any]) -> tuple[DecoderSpec, tuple[str, ...]]:
    read = ConfigReader(config)
    read.ignore(*COMMON_IGNORED)
    read.neutral(_NEUTRAL)
    check_activation(read)
    found = sizes(read)
    windows = layer_windows(read, num_layers=found["num_hidden_layers"], period=_PERIOD)
    _check_second_window(read)
    rotary = Rotary(theta=flat_rotary(read, "Gemma 2"), factor=1.0)
    spec = DecoderSpec(
        family="gemma2",
        **found,
        # 27B: 144, which is hidden_size / num_attention_heads, and not its head_dim of 128
        attention_scale=read.number("query_pre_attn_scalar", low=SMALLEST, high=1e6) ** -0.5,
        attention_softcap=softcap(read, "attn_logit_softcapping"),
        final_softcap=softcap(read, "final_logit_softcapping"),
        windows=windows,
        rotary=rotary,
        local_rotary=rotary,
        post_norms=True,
        qk_norm=False,
        computes_rotary=False,
    )
    return spec, read.unread()


def _check_second_window(read: ConfigReader) -> None:
    """Some early configs have the window twice."""
    again, window = read.optional("sliding_window_size"), read.optional("sliding_window")
    if again is not None and again != window:
        raise ConfigError(
            f"config.json: sliding_window is {window!r} and sliding_window_size {again!r}",
            hint="Both mean the window: take the value of the published config.json.",
        )


GEMMA2 = Family(
    name="gemma2",
    model_type="gemma2",
    constants=_CONSTANTS,
    parse_config=_parse_config,
    tensor_shapes=decoder_tensors,
    cache_states=key_value_states,
    build=build_decoder,
)
