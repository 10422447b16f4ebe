"""Which modules an adapter changes, and with which rank and scale: PEFT's matching, rule by rule. Torch-free.

Source: https://github.com/huggingface/peft: check_target_module_exists and _maybe_include_all_linear_layers in
tuners/tuners_utils.py, get_pattern_key and _set_trainable in utils/other.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable

from gemma_export.adapter.config import LAYER_PATTERN, RANK_PATTERN, SAVED_PATTERN, AdapterConfig
from gemma_export.errors import CheckpointError

__all__ = ["is_saved_whole", "module_kinds", "rank_and_scale", "target_modules"]

_ALL_LINEAR = "all-linear"
_ANY_LAYER = r".*?\.[^.]*\.(?P<idx>\d+)\."


def target_modules(
    config: AdapterConfig, modules: Collection[str], linear: Collection[str], *, complete: bool = True
) -> set[str]:
    """The modules that the configuration targets.

    Args:
        config: the adapter's.
        modules: names of all modules with weights, `lm_head` among them.
        linear: those that "all-linear" means: every projection but the head.
        complete: the adapter's model had no others, which a name that matches none of these could mean.

    Raises:
        CheckpointError: a name or the pattern matches no module.
    """
    named = config.target_modules
    if isinstance(named, str) and named.lower() == _ALL_LINEAR:
        return {module for module in linear if not _is_excluded(config, module)}
    if isinstance(named, str):
        matched = {module for module in modules if re.fullmatch(named, module)}
        if not matched:
            raise _no_module(f"pattern {named[:120]!r}", modules)
        return {module for module in matched if not _is_excluded(config, module)}
    for name in named:
        if complete and not any(_ends_with(module, (name,)) for module in modules):
            raise _no_module(repr(name[:120]), modules)
    return {
        module
        for module in modules
        if not _is_excluded(config, module)
        # a name in full counts whatever layers_to_transform says
        and (module in named or (_ends_with(module, named) and _in_layers(config, module)))
    }


def rank_and_scale(config: AdapterConfig, module: str) -> tuple[int, float]:
    """Rank of a module's factors and what their product is multiplied by."""
    rank = config.rank_pattern.get(_pattern(config.rank_pattern, module), config.rank)
    alpha = config.alpha_pattern.get(_pattern(config.alpha_pattern, module), config.alpha)
    return rank, alpha / (math.sqrt(rank) if config.rank_stabilized else rank)


def is_saved_whole(config: AdapterConfig, module: str) -> bool:
    """Whether modules_to_save made a copy of a module, or of one around it."""
    parts = module.split(".")
    around = [".".join(parts[: count + 1]) for count in range(len(parts))]
    # plain ends of names: "norm" means input_layernorm too
    return any(name.endswith(saved) for name in around for saved in config.modules_to_save)


def _pattern(patterns: Iterable[str], module: str) -> str:
    for pattern in patterns:
        if re.match(RANK_PATTERN.format(pattern), module):
            return pattern
    return module


def _is_excluded(config: AdapterConfig, module: str) -> bool:
    excluded = config.exclude_modules
    if isinstance(excluded, str):
        if excluded and re.fullmatch(excluded, module):
            return True
    elif _ends_with(module, excluded):
        return True
    return any(re.match(SAVED_PATTERN.format(saved), module) for saved in config.modules_to_save)


def _ends_with(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _in_layers(config: AdapterConfig, module: str) -> bool:
    if config.layers is None:
        return True
    patterns = [LAYER_PATTERN.format(name) for name in config.layer_lists] or [_ANY_LAYER]
    found = next((match for pattern in patterns if (match := re.match(pattern, module))), None)
    return found is not None and int(found["idx"]) in config.layers


def module_kinds(modules: Iterable[str]) -> str:
    """The last parts of modules' names, for messages."""
    return ", ".join(dict.fromkeys(module.rpartition(".")[2] for module in modules))


def _no_module(what: str, modules: Collection[str]) -> CheckpointError:
    return CheckpointError(
        f"adapter_config.json: target_modules: {what} matches no module of the base model, expected some of: "
        f"{module_kinds(modules)}",
        hint="The adapter was made for another architecture, or targets what this one does not have.",
    )
