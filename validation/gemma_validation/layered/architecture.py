"""What a layer-by-layer reference needs of an architecture in transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gemma_validation.errors import MismatchError, MissingPackageError

if TYPE_CHECKING:
    from gemma_export.layerwise import LayerStack

__all__ = ["Architecture", "architecture_of"]

# config.json's model_type -> module that holds its ARCHITECTURE; imported on demand, because they import transformers
_MODULES = {
    "gemma": "gemma_validation.layered.gemma",
    "gemma2": "gemma_validation.layered.gemma2",
    "gemma3_text": "gemma_validation.layered.gemma3",
    "vaultgemma": "gemma_validation.layered.vaultgemma",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture of transformers."""

    # config.json, parsed -> transformers' own modules on the meta device
    stack: Callable[[Mapping[str, Any]], LayerStack]
    # tap of a layer (gemma_export.layerwise) at which the stream behind attention can be seen
    attention_residual: str


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a config.json names.

    Raises:
        MismatchError: none of those known.
        MissingPackageError: torch or transformers is not installed.
    """
    model_type = config.get("model_type")
    module = _MODULES.get(str(model_type))
    if module is None:
        raise MismatchError(
            f"no layer-by-layer reference for model_type {model_type!r}, expected one of {', '.join(_MODULES)}",
            hint="Give a checkpoint of a family that gemma-export exports.",
        )
    try:
        architecture: Architecture = import_module(module).ARCHITECTURE
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"the reference needs {error.name}, which is not installed", hint="pip install 'gemma-export[validate]'"
        ) from error
    return architecture
