"""What a consumer file provides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gemma_export.config import CacheState, DecoderSpec

__all__ = ["Consumer", "FolderFacts"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderFacts:
    """What a consumer file may say about the export."""

    title: str
    # Hub repository of the weights, if they come from one
    repository: str | None
    # "builtin", "local", "hub" or "synthetic", and the same in words
    source_kind: str
    source: str
    # name of the adapter that is merged into the weights
    adapter: str | None
    license_url: str
    spec: DecoderSpec
    # decoder state, layer by layer
    states: tuple[CacheState, ...]
    # the checkpoint's config.json and generation_config.json, parsed
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any] | None
    # files of the checkpoint that describe its tokenizer, by name
    tokenizer_files: Mapping[str, Path]
    target: str
    # "compacted" or "columns": where the tokens of a padded row lie in the cache
    cache_layout: str
    precision: str
    # how the checkpoint's own integers were made, where the folder has them
    quantised_by: str | None
    activation_dtype: str
    # of keys and values between steps
    state_dtype: str
    providers: tuple[str, ...]
    # path -> (role, what its logits cover)
    graphs: Mapping[str, tuple[str, str]]
    # of the weights that all graphs share, in order
    data_files: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consumer:
    """One reader of the folder: the files it needs."""

    name: str
    # facts -> path inside the folder -> content, or the file to copy
    files: Callable[[FolderFacts], dict[str, bytes | Path]]
    # raises for files that contradict the configuration, returns warnings; runs once, when the export is planned
    check: Callable[[FolderFacts], tuple[str, ...]] = lambda facts: ()
