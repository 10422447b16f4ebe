"""Architectures, one file each. `FAMILIES` is the registry: to add one, add a file and a line here.

A family file is torch-free when imported (plans and `--dry-run` read it); it composes torch modules only in `build`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma_export.errors import ConfigError
from gemma_export.families.config_reader import ConfigReader
from gemma_export.families.family import Family
from gemma_export.families.gemma import GEMMA
from gemma_export.families.gemma2 import GEMMA2
from gemma_export.families.gemma3 import GEMMA3
from gemma_export.families.vaultgemma import VAULTGEMMA

__all__ = ["FAMILIES", "Family", "check_generation_config", "family_of"]

FAMILIES: dict[str, Family] = {family.name: family for family in (GEMMA, GEMMA2, GEMMA3, VAULTGEMMA)}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family whose `model_type` a config.json names.

    Raises:
        ConfigError: the key is missing, or no family reads this architecture.
    """
    model_type = config.get("model_type")
    for family in FAMILIES.values():
        if model_type == family.model_type:
            return family
    known = ", ".join(sorted(family.model_type for family in FAMILIES.values()))
    raise ConfigError(
        f"config.json: unsupported architecture: model_type is {model_type!r}, expected one of: {known}",
        hint="Export a checkpoint of a supported family; `gemma-export variants` lists them.",
    )


def check_generation_config(config: Mapping[str, Any], *, vocab_size: int) -> None:
    """Refuses stop ids that no logits have: generation would never end.

    Raises:
        ConfigError: generation_config.json's eos_token_id is not one or several ids of the vocabulary.
    """
    reader = ConfigReader(config, "generation_config.json")
    reader.token_ids("eos_token_id", vocab_size=vocab_size, default=(0,))
