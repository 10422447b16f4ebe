"""Gemma 1 and CodeGemma: pre-norm layers, multi-query or grouped-query attention, GeGLU, tied embedding.

Source: https://arxiv.org/abs/2403.08295, https://arxiv.org/abs/2406.11409 and
https://github.com/google/gemma_pytorch/blob/main/gemma/model.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gemma_export.config import DecoderSpec, Rotary
from gemma_export.families.config_reader import ConfigReader
from gemma_export.families.decoder_config import COMMON_IGNORED, check_activation, sizes
from gemma_export.families.decoder_parts import build_decoder, decoder_tensors, key_value_states
from gemma_export.families.family import Family
from gemma_export.families.rotary_config import flat_rotary

__all__ = ["GEMMA"]

# what the released checkpoints of all sizes say alike
_CONSTANTS = {
    "hidden_act": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
# keys under which the mathematics stays Gemma 1's, and the values that leave it so
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "layer_types": (),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, 1.0),
    "quantization_config": (),
    "query_pre_attn_scalar": (),
    "rope_scaling": ({"rope_type": "default"}, {"type": "default"}),
    "sliding_window": (),
    "sliding_window_pattern": (),
    "use_bidirectional_attention": (False,),
}


def _parse_config(config: Mapping[str, Any]) -> tuple[DecoderSpec, tuple[str, ...]]:
    read = ConfigReader(config)
    read.ignore(*COMMON_IGNORED)
    read.neutral(_NEUTRAL)
    check_activation(read)
    found = sizes(read)
    rotary = Rotary(theta=flat_rotary(read, "Gemma 1"), factor=1.0)
    spec = DecoderSpec(
        family="gemma",
        **found,
        attention_scale=1 / math.sqrt(found["head_dim"]),
        attention_softcap=0.0,
        final_softcap=0.0,
        windows=(0,) * found["num_hidden_layers"],
        rotary=rotary,
        local_rotary=rotary,
        post_norms=False,
        qk_norm=False,
        computes_rotary=False,
    )
    return spec, read.unread()


GEMMA = Family(
    name="gemma",
    model_type="gemma",
    parse_config=_parse_config,
    constants=_CONSTANTS,
    tensor_shapes=decoder_tensors,
    cache_states=key_value_states,
    build=build_decoder,
)
