"""VaultGemma: Gemma 2's soft-capping and scale in layers without post-norms, trained with differential privacy.

Source: https://arxiv.org/abs/2510.15001 and
https://github.com/huggingface/transformers/blob/main/src/transformers/models/vaultgemma/modular_vaultgemma.py.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from gemma_export.config import DecoderSpec, Rotary
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

__all__ = ["VAULTGEMMA"]

# there is no variant whose missing keys they would stand for
_CONSTANTS: dict[str, Any] = {}
# keys under which the mathematics stays VaultGemma's, and the values that leave it so
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, 1.0),
    "quantization_config": (),
    "rope_scaling": ({"rope_type": "default"}, {"type": "default"}),
    "use_bidirectional_attention": (False,),
}
# its own, in the checkpoint's words
_MLP_NORM = "pre_feedforward_layernorm"


def _parse_config(config: Mapping[str, Any]) -> tuple[DecoderSpec, tuple[str, ...]]:
    read = ConfigReader(config)
    read.ignore(*COMMON_IGNORED)
    read.neutral(_NEUTRAL)
    check_activation(read)
    found = sizes(read)
    rotary = Rotary(theta=flat_rotary(read, "VaultGemma"), factor=1.0)
    spec = DecoderSpec(
        family="vaultgemma",
        **found,
        attention_scale=read.number("query_pre_attn_scalar", low=SMALLEST, high=1e6) ** -0.5,
        attention_softcap=softcap(read, "attn_logit_softcapping"),
        final_softcap=softcap(read, "final_logit_softcapping"),
        # layer_types must be there: the reference's description says that no layer has a window, its default that
        # every other one does
        windows=layer_windows(read, num_layers=found["num_hidden_layers"], period=None),
        rotary=rotary,
        local_rotary=rotary,
        post_norms=False,
        qk_norm=False,
        computes_rotary=False,
    )
    return spec, read.unread()


VAULTGEMMA = Family(
    name="vaultgemma",
    model_type="vaultgemma",
    constants=_CONSTANTS,
    parse_config=_parse_config,
    tensor_shapes=functools.partial(decoder_tensors, mlp_norm=_MLP_NORM),
    cache_states=key_value_states,
    build=functools.partial(build_decoder, mlp_norm=_MLP_NORM),
)
