"""What the decoders of all families read from config.json the same way."""

from __future__ import annotations

from typing import Any

from gemma_export.errors import ConfigError
from gemma_export.families.config_reader import ConfigReader

__all__ = [
    "COMMON_IGNORED",
    "SMALLEST",
    "check_activation",
    "check_heads",
    "layer_windows",
    "pad_token_id",
    "sizes",
    "softcap",
]

# keys that mean nothing to an export of any family
COMMON_IGNORED = (
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "cache_implementation",
    "dtype",
    "initializer_range",
    "model_type",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
)
# numbers below it are no scale, bound or base that a model was trained with: float32 overflows behind them
SMALLEST = 1e-3
_WINDOWED, _GLOBAL = "sliding_attention", "full_attention"


def sizes(read: ConfigReader) -> dict[str, Any]:
    """The numbers of DecoderSpec that every family has under the same keys, and its special tokens.

    Raises:
        ConfigError: a key is missing or its value is out of range.
    """
    vocab_size = read.integer("vocab_size", low=1, high=1 << 24)
    heads, kv_heads, head_dim = check_heads(read)
    return {
        "vocab_size": vocab_size,
        "hidden_size": read.integer("hidden_size", low=1, high=1 << 17),
        "intermediate_size": read.integer("intermediate_size", low=1, high=1 << 20),
        "num_hidden_layers": read.integer("num_hidden_layers", low=1, high=1024),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": read.number("rms_norm_eps", low=0.0, high=1.0),
        "max_position_embeddings": read.integer("max_position_embeddings", low=1, high=1 << 24),
        # released configs leave these out; the values are the reference's own
        "tie_word_embeddings": read.boolean("tie_word_embeddings", default=True),
        "bos_token_id": read.token_ids("bos_token_id", vocab_size=vocab_size, default=(2,))[0],
        "eos_token_ids": read.token_ids("eos_token_id", vocab_size=vocab_size, default=(1,)),
        "pad_token_id": pad_token_id(read, vocab_size),
    }


def check_heads(read: ConfigReader) -> tuple[int, int, int]:
    """Query heads, key-value heads, and the size of one."""
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
    return heads, kv_heads, head_dim


def pad_token_id(read: ConfigReader, vocab_size: int) -> int:
    """Nothing in the graph uses it; some fine-tunes write -1 for none."""
    if read.optional("pad_token_id") == -1:
        return 0
    return read.token_ids("pad_token_id", vocab_size=vocab_size, default=(0,))[0]


def check_activation(read: ConfigReader) -> None:
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


def softcap(read: ConfigReader, key: str) -> float:
    """A soft-capping bound; 0 where the config says null. The key itself must be there: references differ without."""
    if not read.has(key):
        raise ConfigError(
            f"config.json: missing key {key!r}, which the architecture needs",
            hint="Write the bound, or null for none, as the published config.json has it.",
        )
    value = read.optional(key)
    return 0.0 if value is None else read.check_number(key, value, low=SMALLEST, high=1e6)


def layer_windows(read: ConfigReader, *, num_layers: int, period: int | None) -> tuple[int, ...]:
    """Positions that each layer's tokens see; 0 means all.

    Args:
        read: of the configuration: sliding_window, and layer_types or else the period.
        num_layers: how many.
        period: every so many layers one sees everything, where there are no layer_types, which come first in the
            reference too; None: they must be there.

    Raises:
        ConfigError: layer_types are missing, too few or of an unknown kind.
    """
    types = read.optional("layer_types")
    found = None if period is None else tuple((index + 1) % period != 0 for index in range(num_layers))
    if types is not None:
        if not isinstance(types, list) or len(types) != num_layers:
            shown = f"{len(types)} entries" if isinstance(types, list) else repr(types)
            raise ConfigError(
                f"config.json: layer_types must have one entry for each of {num_layers} layers, found {shown}",
                hint="Take layer_types from the published config.json of this model.",
            )
        unknown = [kind for kind in types if kind not in (_WINDOWED, _GLOBAL)]
        if unknown:
            raise ConfigError(
                f"config.json: layer_types: unknown kind {unknown[0]!r}, expected {_WINDOWED} or {_GLOBAL}",
                hint="This checkpoint needs a kind of layer that is not implemented.",
            )
        found = tuple(kind == _WINDOWED for kind in types)
    if found is None:
        raise ConfigError(
            "config.json: neither layer_types nor sliding_window_pattern says which layers have a window",
            hint="Take layer_types from the published config.json of this model.",
        )
    window = read.integer("sliding_window", low=1, high=1 << 24) if any(found) else 0
    read.ignore("sliding_window")
    return tuple(window if windowed else 0 for windowed in found)
