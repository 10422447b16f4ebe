"""Gemma 1 and CodeGemma: pre-norm layers, multi-query or grouped-query attention, GeGLU, tied embedding.

Source: https://arxiv.org/abs/2403.08295, https://arxiv.org/abs/2406.11409 and
https://github.com/google/gemma_pytorch/blob/main/gemma/model.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gemma_export.config import CacheState, DecoderSpec
from gemma_export.errors import ConfigError
from gemma_export.families.config_reader import ConfigReader
from gemma_export.families.family import Family

if TYPE_CHECKING:
    from gemma_export.nn import Decoder, PreNormLayer

__all__ = ["GEMMA"]

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
_IGNORED = (
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "dtype",
    "initializer_range",
    "model_type",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
)


def _parse_config(config: Mapping[str, Any]) -> tuple[DecoderSpec, tuple[str, ...]]:
    read = ConfigReader(config)
    read.ignore(*_IGNORED)
    read.neutral(_NEUTRAL)
    _check_activation(read)
    vocab_size = read.integer("vocab_size", low=1, high=1 << 24)
    heads = read.integer("num_attention_heads", low=1, high=1024)
    kv_heads = read.integer("num_key_value_heads", low=1, high=1024)
    if heads % kv_heads:
        raise ConfigError(
            f"config.json: num_attention_heads must be a multiple of num_key_value_heads, found {heads} and {kv_heads}",
            hint="Every key-value head serves the same number of query heads: correct config.json.",
        )
    head_dim = read.integer("head_dim", low=2, high=1024)
    if head_dim % 2:
        raise ConfigError(
            f"config.json: head_dim must be even for rotary embedding, found {head_dim}", hint="Correct config.json."
        )
    spec = DecoderSpec(
        family="gemma",
        vocab_size=vocab_size,
        hidden_size=read.integer("hidden_size", low=1, high=1 << 17),
        intermediate_size=read.integer("intermediate_size", low=1, high=1 << 20),
        num_hidden_layers=read.integer("num_hidden_layers", low=1, high=1024),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=read.number("rms_norm_eps", low=0.0, high=1.0),
        rope_theta=_rope_theta(read),
        max_position_embeddings=read.integer("max_position_embeddings", low=1, high=1 << 24),
        # released Gemma 1 configs leave these out; the values are the reference's own
        tie_word_embeddings=read.boolean("tie_word_embeddings", default=True),
        bos_token_id=read.token_ids("bos_token_id", vocab_size=vocab_size, default=(2,))[0],
        eos_token_ids=read.token_ids("eos_token_id", vocab_size=vocab_size, default=(1,)),
        pad_token_id=_pad_token_id(read, vocab_size),
    )
    return spec, read.unread()


def _pad_token_id(read: ConfigReader, vocab_size: int) -> int:
    """Nothing in the graph uses it; some fine-tunes write -1 for none."""
    if read.optional("pad_token_id") == -1:
        return 0
    return read.token_ids("pad_token_id", vocab_size=vocab_size, default=(0,))[0]


def _check_activation(read: ConfigReader) -> None:
    """Old configs say "gelu" and mean the tanh approximation, as the reference reads them."""
    activation, override = read.optional("hidden_act"), read.optional("hidden_activation")
    if activation is None and override is None:
        raise ConfigError(
            "config.json: missing key 'hidden_act', which the architecture needs",
            hint="Released Gemma checkpoints say gelu or gelu_pytorch_tanh; both mean tanh GELU.",
        )
    if activation not in (None, "gelu", "gelu_pytorch_tanh") or override not in (None, "gelu_pytorch_tanh"):
        raise ConfigError(
            f"config.json: unsupported activation: hidden_act is {activation!r} and hidden_activation {override!r}, "
            "expected tanh GELU (gelu_pytorch_tanh)",
            hint="This is not a Gemma feed-forward block; exporting it as one would give wrong numbers.",
        )


def _rope_theta(read: ConfigReader) -> float:
    """The rotary base, from the old top-level key or the newer nested one; both must agree."""
    flat, nested = read.optional("rope_theta"), read.optional("rope_parameters")
    values = {} if flat is None else {"rope_theta": flat}
    if nested is not None:
        if not isinstance(nested, dict) or nested.get("rope_type", "default") != "default":
            raise ConfigError(
                f"config.json: rope_parameters must be an object of rope_type default, found {nested!r}",
                hint="Scaled rotary embedding is not part of Gemma 1; exporting it would give wrong numbers.",
            )
        unknown = sorted(set(nested) - {"rope_type", "rope_theta"})
        if unknown:
            raise ConfigError(
                f"config.json: rope_parameters has keys that are not implemented: {', '.join(unknown)}",
                hint="Scaled rotary embedding is not part of Gemma 1; exporting it would give wrong numbers.",
            )
        if "rope_theta" in nested:
            values["rope_parameters.rope_theta"] = nested["rope_theta"]
    bases = {key: read.check_number(key, value, low=0.0, high=1e12) for key, value in values.items()}
    if len(set(bases.values())) != 1:
        found = ", ".join(f"{key} = {value:g}" for key, value in bases.items()) or "neither"
        raise ConfigError(
            f"config.json: one rotary base needed in rope_theta or rope_parameters.rope_theta, found {found}",
            hint="Released Gemma 1 checkpoints use rope_theta 10000: correct config.json.",
        )
    return next(iter(bases.values()))


def _tensor_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    hidden, ffn = spec.hidden_size, spec.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab_size, hidden)}
    for layer in range(spec.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_proj.weight": (spec.query_size, hidden),
            f"{prefix}.self_attn.k_proj.weight": (spec.key_value_size, hidden),
            f"{prefix}.self_attn.v_proj.weight": (spec.key_value_size, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, spec.query_size),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{prefix}.mlp.gate_proj.weight": (ffn, hidden),
            f"{prefix}.mlp.up_proj.weight": (ffn, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, ffn),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not spec.tie_word_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    return shapes


def _cache_states(spec: DecoderSpec) -> tuple[CacheState, ...]:
    return tuple(
        CacheState(
            kind="key_value",
            layer=layer,
            past_names=(f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"),
            present_names=(f"present.{layer}.key", f"present.{layer}.value"),
            num_heads=spec.num_key_value_heads,
            head_dim=spec.head_dim,
        )
        for layer in range(spec.num_hidden_layers)
    )


def _build(spec: DecoderSpec) -> Decoder:
    from gemma_export.nn import Decoder, GatedMLP, GroupedQueryAttention, PreNormLayer, rotary_tables

    def layer(index: int) -> PreNormLayer:
        return PreNormLayer(
            index,
            attention=GroupedQueryAttention(
                hidden_size=spec.hidden_size,
                num_heads=spec.num_attention_heads,
                kv_num_heads=spec.num_key_value_heads,
                head_dim=spec.head_dim,
                scale=spec.attention_scale,
            ),
            mlp=GatedMLP(spec.hidden_size, spec.intermediate_size),
            hidden_size=spec.hidden_size,
            epsilon=spec.rms_norm_eps,
        )

    return Decoder(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_hidden_layers,
        epsilon=spec.rms_norm_eps,
        tie_word_embeddings=spec.tie_word_embeddings,
        layer=layer,
        rotary=rotary_tables(positions=spec.max_position_embeddings, head_dim=spec.head_dim, theta=spec.rope_theta),
    )


GEMMA = Family(
    name="gemma",
    model_type="gemma",
    parse_config=_parse_config,
    tensor_shapes=_tensor_shapes,
    cache_states=_cache_states,
    build=_build,
)
