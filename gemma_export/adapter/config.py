"""adapter_config.json, read strictly: what changes the merged numbers is implemented or refused. Torch-free.

Source: https://github.com/huggingface/peft/blob/main/src/peft/tuners/lora/config.py.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from gemma_export.errors import ConfigError
from gemma_export.families.config_reader import ConfigReader

__all__ = ["LAYER_PATTERN", "RANK_PATTERN", "SAVED_PATTERN", "AdapterConfig", "parse_config"]

_FILE = "adapter_config.json"
_HINT = "Compare the file with the one that PEFT saved, or fetch the adapter again."
_MAX_RANK = 1 << 16
# a pattern of every module by its name stays far below this
_MAX_PATTERN = 20_000

# The expressions that PEFT builds around a name from the configuration, which may be a pattern itself.
RANK_PATTERN = r"(.*\.)?({})$"
SAVED_PATTERN = r"(^|.*\.){}($|\..*)"
# the first number is the layer's, whatever numbers follow
LAYER_PATTERN = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."

# keys of LoRA variants that are not implemented, and the values under which they mean nothing
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "alora_invocation_tokens": ([],),
    "arrow_config": (),
    "kasa_config": (),
    "layer_replication": ([],),
    "lora_bias": (False,),
    "megatron_config": (),
    "monteclora_config": (),
    "target_parameters": ([],),
    "trainable_token_indices": ([], {}),
    "use_bdlora": (False,),
    "use_qalora": (False,),
}
# What only training or initialisation reads. PEFT resets fan_in_fan_out to false for linear layers, whatever it says;
# velora_config changes the backward pass alone.
_IGNORED = (
    "auto_mapping",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "velora_config",
)
# Initialisations that leave the base model as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) subtract
# something from it, and their adapters are relative to the result.
_NEUTRAL_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal", "mica")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """One LoRA or DoRA adapter, as its adapter_config.json describes it."""

    rank: int
    alpha: float
    # scale by alpha / sqrt(rank) instead of alpha / rank (https://arxiv.org/abs/2312.03732)
    rank_stabilized: bool
    # weight-decomposed: each row of the sum is brought to a trained norm (https://arxiv.org/abs/2402.09353)
    weight_decomposed: bool
    # pattern of module names -> what replaces rank and alpha there; the first match counts
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    # a regular expression, "all-linear", or names and ends of names
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    # layers that name ends are restricted to; None means all
    layers: tuple[int, ...] | None
    # names of the lists of layers; empty means any
    layer_lists: tuple[str, ...]
    # ends of the names of modules that are saved whole
    modules_to_save: tuple[str, ...]
    # the adapter of a tied embedding is one of the head too
    ensure_weight_tying: bool
    # repository or path that the adapter was trained on
    base_model: str | None


def parse_config(config: Mapping[str, Any]) -> AdapterConfig:
    """Reads adapter_config.json.

    Raises:
        ConfigError: no LoRA, a key is missing or impossible, or one changes the mathematics and is not implemented.
    """
    read = ConfigReader(config, _FILE)
    kind = read.optional("peft_type")
    if kind != "LORA":
        raise ConfigError(
            f"{_FILE}: peft_type is {_shown(kind)}, expected 'LORA': other adapters cannot be merged",
            hint="Only LoRA (rank-stabilised and DoRA too) can be merged into the weights of an export.",
        )
    read.ignore(*_IGNORED)
    read.neutral(_NEUTRAL)
    _check_initialisation(read)
    # a bias that was trained is saved, and then it must be one of the base model's: see merge.py
    if read.optional("bias") not in (None, "none", "all", "lora_only"):
        raise _error("bias", "none, all or lora_only", read.optional("bias"))
    parsed = AdapterConfig(
        rank=read.integer("r", low=1, high=_MAX_RANK),
        alpha=_alpha("lora_alpha", read.optional("lora_alpha")),
        rank_stabilized=read.boolean("use_rslora", default=False),
        weight_decomposed=read.boolean("use_dora", default=False),
        rank_pattern={key: _rank(key, value) for key, value in _patterns(read, "rank_pattern").items()},
        alpha_pattern={
            key: _alpha(f"alpha_pattern[{key!r}]", value) for key, value in _patterns(read, "alpha_pattern").items()
        },
        target_modules=_modules(read, "target_modules"),
        exclude_modules=_modules(read, "exclude_modules"),
        layers=_layers(read),
        layer_lists=_texts(read, "layers_pattern", LAYER_PATTERN),
        modules_to_save=_texts(read, "modules_to_save", SAVED_PATTERN),
        ensure_weight_tying=read.boolean("ensure_weight_tying", default=False),
        base_model=_base_model(read),
    )
    if not parsed.target_modules:
        raise _error("target_modules", "names of modules, a pattern or all-linear", read.optional("target_modules"))
    if isinstance(parsed.target_modules, str) and (parsed.layers is not None or parsed.layer_lists):
        raise ConfigError(
            f"{_FILE}: layers_to_transform and layers_pattern need a list in target_modules, found a pattern",
            hint="PEFT refuses this combination too: say the layers in the pattern.",
        )
    _refuse_unknown(read, config)
    return parsed


def _check_initialisation(read: ConfigReader) -> None:
    value = read.optional("init_lora_weights")
    known = value.lower() if isinstance(value, str) else value
    if value is not None and not any(
        type(known) is type(allowed) and known == allowed for allowed in _NEUTRAL_INITIALISATIONS
    ):
        raise ConfigError(
            f"{_FILE}: init_lora_weights is {_shown(value)}: such an adapter is relative to a base model that its "
            "initialisation changed",
            hint="Save it with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it.",
        )


def _refuse_unknown(read: ConfigReader, config: Mapping[str, Any]) -> None:
    # a key of a newer PEFT that is switched off (null, false, 0, empty) changes nothing
    for key in read.unread():
        if config[key]:
            raise ConfigError(
                f"{_FILE}: unknown key {key[:80]!r} is {_shown(config[key])}: it may change the mathematics",
                hint="This adapter needs a newer gemma-export; if the key is a remark of your own, remove it.",
            )


def _alpha(key: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value == 0 or abs(value) > 1e9:
        raise _error(key, "a number other than 0", value)
    return float(value)


def _rank(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_RANK:
        raise _error(f"rank_pattern[{key!r}]", f"an integer from 1 to {_MAX_RANK}", value)
    return value


def _patterns(read: ConfigReader, key: str) -> dict[str, Any]:
    value = read.optional(key)
    if value is not None and not isinstance(value, dict):
        raise _error(key, "an object of module patterns", value)
    for pattern in value or {}:
        _check_pattern(key, pattern, RANK_PATTERN)
    return value or {}


def _modules(read: ConfigReader, key: str) -> str | tuple[str, ...]:
    value = read.optional(key)
    if isinstance(value, str):
        _check_pattern(key, value)
        return value
    return _texts(read, key)


def _texts(read: ConfigReader, key: str, pattern: str | None = None) -> tuple[str, ...]:
    """Names in a list, or one alone; `pattern` is what they become a part of."""
    value = read.optional(key)
    values = [value] if isinstance(value, str) and value else value or []
    if not isinstance(values, list) or not all(isinstance(item, str) and item for item in values):
        raise _error(key, "a list of names", value)
    if pattern is not None:
        for item in values:
            _check_pattern(key, item, pattern)
    return tuple(values)


def _layers(read: ConfigReader) -> tuple[int, ...] | None:
    value = read.optional("layers_to_transform")
    if value is None or value == []:
        return None
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in values):
        raise _error("layers_to_transform", "indices of layers", value)
    return tuple(values)


def _base_model(read: ConfigReader) -> str | None:
    value = read.optional("base_model_name_or_path")
    if value is not None and not isinstance(value, str):
        raise _error("base_model_name_or_path", "a text", value)
    return value or None


def _check_pattern(key: str, name: str, pattern: str = "{}") -> None:
    try:
        if len(name) > _MAX_PATTERN:
            raise ValueError(f"{len(name)} characters")
        re.compile(name)
        re.compile(pattern.format(name))
    except (ValueError, re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{_FILE}: {key}: {_shown(name)} is no regular expression: {error}", hint=_HINT) from error


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _error(key: str, expected: str, found: Any) -> ConfigError:
    return ConfigError(f"{_FILE}: {key[:120]} must be {expected}, found {_shown(found)}", hint=_HINT)
