"""The text decoder of a vision-language checkpoint: its configuration and tensors by a text checkpoint's names.

Gemma 3 from 4B up is released as one model of images and text. Its config.json nests the decoder's keys in text_config,
and its tensors have one of two prefixes, beside those of the vision tower and of the projector:

    language_model.model.X    language_model.lm_head.weight    the released files, and what transformers saves
    model.language_model.X    lm_head.weight                   transformers' own names since 4.52
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gemma_export.errors import CheckpointError, ConfigError, GemmaExportError, MissingResourceError
from gemma_export.tensors import StoredTensor, TensorSource

__all__ = ["TextTensors", "is_of_images", "text_config", "text_name", "text_prefix", "text_tensors", "whole_name"]

_MODEL_TYPE, _TEXT_TYPE, _SECTION = "gemma3", "gemma3_text", "text_config"
# What the released text_config of 4B, 12B and 27B leaves out where it is what the reference assumes:
# https://github.com/huggingface/transformers/blob/v4.50.0/src/transformers/models/gemma3/configuration_gemma3.py.
# hidden_size, intermediate_size, num_hidden_layers and sliding_window are always there.
_ASSUMED: dict[str, Any] = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "tie_word_embeddings": True,
}
_ROTARY = (("rope_theta", "full_attention", 1000000.0), ("rope_local_base_freq", "sliding_attention", 10000.0))
_PATTERNS = ("layer_types", "sliding_window_pattern", "_sliding_window_pattern")
_PATTERN = 6
# keys of the whole model that say nothing of its text decoder
_DROPPED = frozenset(
    (
        *("architectures", "model_type", _SECTION, "vision_config", "initializer_range", "mm_tokens_per_image"),
        *("boi_token_index", "eoi_token_index", "image_token_index"),
        *("boi_token_id", "eoi_token_id", "image_token_id"),
    )
)
# the text decoder's own, which mean nothing beside the section
_DECODER = frozenset(
    (
        *(key for key in _ASSUMED if key != "tie_word_embeddings"),
        *("hidden_size", "intermediate_size", "num_hidden_layers", "sliding_window", "hidden_act", "attention_bias"),
        *("rope_scaling", "rope_parameters", *(key for key, _, _ in _ROTARY), *_PATTERNS),
    )
)
# Of the whole model, whatever stands in text_config: saving one writes the library's defaults there, and fine-tunes for
# chats stop at other tokens.
_WHOLE = ("bos_token_id", "eos_token_id", "pad_token_id", "quantization_config")

_PREFIXES = ("language_model.model.", "model.language_model.")
_HEADS = ("language_model.lm_head.", "lm_head.")
_IMAGES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def text_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration of the text decoder alone, as a checkpoint of it would have it.

    Args:
        config: any config.json, parsed.

    Returns:
        None where it is not of a vision-language model.

    Raises:
        ConfigError: text_config is not there, or not of this architecture.
    """
    if config.get("model_type") != _MODEL_TYPE:
        return None
    section = config.get(_SECTION)
    if not isinstance(section, dict) or not section:
        raise ConfigError(
            f"config.json: model_type is {_MODEL_TYPE!r}, so {_SECTION} must hold the text decoder's keys, found "
            f"{repr(section)[:80]}",
            hint=f"Fetch config.json again; that of a text decoder alone has model_type {_TEXT_TYPE!r}.",
        )
    if section.get("model_type", _TEXT_TYPE) != _TEXT_TYPE:
        raise ConfigError(
            f"config.json: {_SECTION}.model_type must be {_TEXT_TYPE!r}, found {repr(section['model_type'])[:80]}",
            hint="This checkpoint needs a text decoder that is not implemented.",
        )
    _check_tie(config, section)
    # the reference reads the decoder's own keys from the section alone
    whole = {key: value for key, value in config.items() if key not in _DROPPED | _DECODER}
    found = {**whole, **section}
    found |= {key: config[key] for key in _WHOLE if config.get(key) is not None}
    return {**_with_assumed(found), "architectures": ["Gemma3ForCausalLM"], "model_type": _TEXT_TYPE}


def _check_tie(config: Mapping[str, Any], section: Mapping[str, Any]) -> None:
    """Releases of the reference differ in which of the two they follow."""
    key = "tie_word_embeddings"
    outer, inner = config.get(key), section.get(key)
    if outer is not None and inner is not None and outer != inner:
        raise ConfigError(
            f"config.json: {key} is {outer!r}, {_SECTION}.{key} is {inner!r}",
            hint="Both mean the text decoder's head: keep the one that the checkpoint was trained with.",
        )


def _with_assumed(found: Mapping[str, Any]) -> dict[str, Any]:
    """Completes the keys that a nested configuration may leave to the reference."""
    completed = {**found, **{key: value for key, value in _ASSUMED.items() if found.get(key) is None}}
    nested = found.get("rope_parameters")
    for key, kind, value in _ROTARY:
        own = nested.get(kind) if isinstance(nested, dict) else None
        if found.get(key) is None and not (isinstance(own, dict) and own.get("rope_theta") is not None):
            completed[key] = value
    if all(found.get(key) is None for key in _PATTERNS):
        completed["sliding_window_pattern"] = _PATTERN
    return completed


class TextTensors:
    """The text decoder's tensors by its own names; those of images are left out.

    Args:
        source: the whole checkpoint's tensors.
        stored: name here -> name there.
    """

    def __init__(self, source: TensorSource, stored: Mapping[str, str]) -> None:
        self._source, self._stored = source, stored
        tensors = source.tensors
        self.tensors: Mapping[str, StoredTensor] = {name: tensors[other] for name, other in stored.items()}

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """See TensorSource."""
        self._source.read_into(self._stored[name], offset, buffer)


def text_tensors(source: TensorSource) -> TextTensors:
    """The text decoder's tensors of a vision-language checkpoint.

    Args:
        source: the whole checkpoint's tensors.

    Raises:
        MissingResourceError: only the vision part is there.
        CheckpointError: names of both layouts or of none.
    """
    names = [name for name in source.tensors if not is_of_images(name)]
    prefix = text_prefix(names)
    if prefix is None:
        raise _no_text(names, source)
    stored: dict[str, str] = {}
    for name in names:
        own = text_name(name, prefix)
        if own is None:
            raise CheckpointError(
                f"tensor {name[:120]!r} is neither of the text decoder ({prefix}*) nor of the vision tower",
                hint="Files of two checkpoints are mixed: fetch the checkpoint into an empty folder.",
            )
        if own in stored:
            raise CheckpointError(
                f"tensors {stored[own][:120]!r} and {name[:120]!r} are the same one of the text decoder",
                hint="Files of two checkpoints are mixed: fetch the checkpoint into an empty folder.",
            )
        stored[own] = name
    return TextTensors(source, stored)


def text_prefix(names: Iterable[str]) -> str | None:
    """What the text decoder's names begin with in a vision-language model; the first layout that occurs, or None."""
    return next((prefix for name in names for prefix in _PREFIXES if name.startswith(prefix)), None)


def is_of_images(name: str) -> bool:
    """Whether a tensor or module is one of the vision tower or of the projector."""
    return name.startswith(_IMAGES)


def text_name(name: str, prefix: str) -> str | None:
    """What a tensor of a vision-language model is called in its text decoder; None where it is none of that.

    Args:
        name: not one of images.
        prefix: of its layout, from `text_prefix`.
    """
    if name.startswith(prefix):
        return f"model.{name.removeprefix(prefix)}"
    head = next((head for head in _HEADS if name.startswith(head)), None)
    return None if head is None else f"lm_head.{name.removeprefix(head)}"


def whole_name(module: str, prefix: str) -> str:
    """What a module of the text decoder is called in the whole model: the other way round."""
    if module.startswith("model."):
        return f"{prefix}{module.removeprefix('model.')}"
    return f"language_model.{module}" if prefix == _PREFIXES[0] else module


def _no_text(names: list[str], source: TensorSource) -> GemmaExportError:
    expected = " or ".join(f"{prefix}*" for prefix in _PREFIXES)
    if not names:
        first = min(source.tensors, default="none")
        return MissingResourceError(
            f"the checkpoint has no weights of the text decoder: expected {expected}, found only those of images "
            f"({len(source.tensors)}, first {first[:120]!r})",
            hint="Fetch the shards that hold the text decoder too.",
        )
    return CheckpointError(
        f"config.json is of a vision-language model, whose text decoder's tensors are called {expected}; found "
        f"{min(names)[:120]!r}",
        hint=f"If these are a text decoder's weights alone, config.json must be too: model_type {_TEXT_TYPE!r} and the "
        f"keys of {_SECTION} at its top.",
    )
