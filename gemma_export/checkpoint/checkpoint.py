"""A checkpoint: its configuration, tokenizer files and lazily read tensors. Torch-free."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from gemma_export.checkpoint.json_file import read_json
from gemma_export.checkpoint.quantisation import Quantisation
from gemma_export.checkpoint.quantised_source import architecture_view
from gemma_export.checkpoint.safetensors_source import SafetensorsSource, weight_files
from gemma_export.checkpoint.synthetic import SyntheticSource
from gemma_export.checkpoint.text_part import text_config, text_tensors
from gemma_export.errors import ConfigError, MissingResourceError
from gemma_export.tensors import TensorSource

__all__ = [
    "BUILTIN_DIRECTORIES",
    "BUILTIN_DIRECTORY",
    "CONFIG",
    "GENERATION_CONFIG",
    "TOKENIZER_FILES",
    "Checkpoint",
    "builtin_checkpoint",
    "display_name",
    "open_checkpoint",
    "synthetic_checkpoint",
]

# the trained tiny models by variant, package data; the first is meant where none is named
BUILTIN_DIRECTORIES = {name: Path(__file__).parent / name for name in ("tiny", "tiny2")}
BUILTIN_DIRECTORY = BUILTIN_DIRECTORIES["tiny"]

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What an export starts from."""

    # config.json, parsed; of a vision-language checkpoint what a checkpoint of its text decoder would have
    config: Mapping[str, Any]
    # the tensors are those of a vision-language checkpoint, of which `view` gives the text decoder's
    text_part: bool = False
    # how its matrices are stored, where that is in integers; `config` is then without that section
    quantisation: Quantisation | None = None
    # None until synthetic weights are made for the shapes that the configuration implies
    source: TensorSource | None
    # base name of its folder, or of its repository
    name: str | None = None
    # Hub repository and 40-hex commit that the files are of
    repository: str | None = None
    revision: str | None = None
    # what a user must know of how it was found
    note: str | None = None
    builtin: bool = False
    generation_config: Mapping[str, Any] | None = None
    # base name -> file
    tokenizer_files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    # every file that decides the export, for the manifest's hashes
    files: tuple[Path, ...] = ()
    # of synthetic weights
    seed: int | None = None

    @property
    def kind(self) -> Literal["synthetic", "builtin", "hub", "local"]:
        """Where the weights come from, in the manifest's words."""
        if self.seed is not None:
            return "synthetic"
        if self.repository is not None:
            return "hub"
        return "builtin" if self.builtin else "local"

    def view(self, expected: Mapping[str, tuple[int, ...]]) -> TensorSource:
        """Its tensors by the architecture's names, quantised matrices too.

        Args:
            expected: tensor name -> shape, from the configuration.

        Raises:
            CheckpointError: a quantised matrix is not stored as config.json says, or the names are of no known layout.
            MissingResourceError: a vision-language checkpoint has no weights of its text decoder.
        """
        assert self.source is not None
        source = text_tensors(self.source) if self.text_part else self.source
        return architecture_view(source, self.quantisation, expected)

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be tokenized: tokenizer.json or tokenizer.model is there."""
        return not {"tokenizer.json", "tokenizer.model"}.isdisjoint(self.tokenizer_files)


def open_checkpoint(directory: Path, *, weights: bool = True) -> Checkpoint:
    """Opens a local checkpoint; headers are read and checked, tensor data is not.

    Args:
        directory: holds config.json, safetensors and tokenizer files.
        weights: False leaves the weights alone (synthetic ones will take their place).

    Raises:
        MissingResourceError: the folder, its config.json or its weights are not there.
        ConfigError, CheckpointError: they are broken.
    """
    if not directory.is_dir():
        what = "is not a folder" if directory.exists() else "does not exist"
        raise MissingResourceError(
            f"checkpoint {directory} {what}", hint="Give the folder that holds config.json and the safetensors files."
        )
    if not (directory / CONFIG).is_file():
        raise MissingResourceError(
            f"checkpoint {directory} has no {CONFIG}",
            hint="Give the folder that holds config.json and the safetensors files.",
        )
    config = read_json(directory / CONFIG)
    text = text_config(config)
    generation = directory / GENERATION_CONFIG
    tokenizer = {name: directory / name for name in TOKENIZER_FILES if (directory / name).is_file()}
    for name, path in tokenizer.items():
        if path.stat().st_size == 0:
            raise ConfigError(f"{name} is empty", hint="Fetch the tokenizer files again.")
    files = [directory / CONFIG, *([generation] if generation.is_file() else []), *tokenizer.values()]
    source = None
    if weights:
        shards, index = weight_files(directory)
        source = SafetensorsSource(shards, index)
        files += shards
    return Checkpoint(
        config=config if text is None else text,
        text_part=text is not None,
        source=source,
        name=display_name(directory),
        generation_config=read_json(generation) if generation.is_file() else None,
        tokenizer_files=tokenizer,
        files=tuple(files),
    )


def display_name(directory: Path) -> str:
    """The base name that the user typed, as text that any file and terminal can show."""
    name = os.path.basename(os.path.abspath(directory))
    return "".join(char if char.isprintable() else "_" for char in name) or "checkpoint"


def builtin_checkpoint(name: str = "tiny", *, weights: bool = True) -> Checkpoint:
    """A built-in tiny model, by its variant's name."""
    return dataclasses.replace(open_checkpoint(BUILTIN_DIRECTORIES[name], weights=weights), builtin=True)


def synthetic_checkpoint(checkpoint: Checkpoint, tensors: Mapping[str, tuple[int, ...]], *, seed: int) -> Checkpoint:
    """The same checkpoint with synthetic weights of these shapes."""
    return dataclasses.replace(checkpoint, source=SyntheticSource(tensors, seed), text_part=False, seed=seed)
