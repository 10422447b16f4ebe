"""A PEFT adapter on disk: its configuration and lazily read tensors. Torch-free."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path

from gemma_export.adapter.config import AdapterConfig, parse_config
from gemma_export.checkpoint import SafetensorsSource, display_name
from gemma_export.checkpoint.json_file import read_json
from gemma_export.errors import CheckpointError, MissingResourceError
from gemma_export.tensors import TensorSource

__all__ = ["CONFIG", "PICKLE", "WEIGHTS", "Adapter", "open_adapter", "pickle_only"]

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """What is merged into a checkpoint."""

    config: AdapterConfig
    source: TensorSource
    # base name of its folder
    name: str
    # the files that decide the merge, for the manifest's hashes
    files: tuple[Path, ...]
    # Hub repository and 40-hex commit, where it comes from one
    repository: str | None = None
    revision: str | None = None

    def base_model_warning(self, *, exported: str, known_as: Collection[str | None]) -> str | None:
        """Says that the adapter names another base model than the one exported; a renamed copy is none of our business.

        Args:
            exported: the exported checkpoint, for the message.
            known_as: its names: repository, base name of its folder, what its configuration says it was made from.
        """
        named = self.config.base_model
        if named is None or any(_same_model(named, name) for name in known_as if name):
            return None
        return f"adapter {self.name} was trained on {named[:200]!r}, the exported checkpoint is {exported}"


def _same_model(named: str, known: str) -> bool:
    """Whether two names may be one model's: two repositories in full, else the last parts of both paths."""
    if _is_repository(named) and _is_repository(known):
        return named.casefold() == known.casefold()
    return _last(named) == _last(known)


def _is_repository(name: str) -> bool:
    # "org/name"; anything else is a folder of the machine that trained the adapter
    organisation, _, base = name.replace("\\", "/").rpartition("/")
    return base != "" and organisation not in ("", ".", "..") and "/" not in organisation


def _last(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()


def pickle_only(where: str) -> CheckpointError:
    """The refusal of an adapter whose tensors are a pickle."""
    return CheckpointError(
        f"{where} has no {WEIGHTS}: its tensors are {PICKLE} only, a pickle: loading one can run any code, so it is "
        "never read",
        hint="Ask its maker for safetensors; where you trust it, load it with PEFT and save it again.",
    )


def open_adapter(directory: Path) -> Adapter:
    """Opens an adapter that PEFT saved; the header is read and checked, tensor data is not.

    Args:
        directory: holds adapter_config.json and adapter_model.safetensors.

    Raises:
        MissingResourceError: the folder, its configuration or its safetensors are not there.
        ConfigError, CheckpointError: they are broken, or no LoRA that can be merged.
    """
    # os.path: a text that no path can be (too long, a null in it) does not exist either
    if not os.path.isdir(directory):
        what = "is not a folder" if os.path.exists(directory) else "does not exist"
        raise MissingResourceError(
            f"adapter {str(directory)[:200]} {what}",
            hint=f"Give the folder that holds {CONFIG} and {WEIGHTS}, or a Hub repository, ORG/NAME.",
        )
    config, weights = directory / CONFIG, directory / WEIGHTS
    if not config.is_file():
        is_model = (directory / "config.json").is_file()
        hint = "This is a whole model: export it with --checkpoint." if is_model else "Give the folder that PEFT saved."
        raise MissingResourceError(f"adapter {directory} has no {CONFIG}", hint=hint)
    parsed = parse_config(read_json(config))
    if not weights.is_file():
        if (directory / PICKLE).is_file():
            raise pickle_only(f"adapter {directory}")
        raise MissingResourceError(
            f"adapter {directory} has no {WEIGHTS}", hint="Fetch the adapter's safetensors file."
        )
    source = SafetensorsSource((weights,))
    if not source.tensors:
        raise CheckpointError(f"{WEIGHTS} holds no tensor", hint="The adapter was saved empty: save it again.")
    return Adapter(config=parsed, source=source, name=display_name(directory), files=(config, weights))
