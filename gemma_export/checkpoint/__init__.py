"""Where weights come from: local safetensors, the Hub, or a synthetic generator. Torch-free and never pickle."""

from __future__ import annotations

from gemma_export.checkpoint.check import check_tensors, same_bytes
from gemma_export.checkpoint.checkpoint import (
    BUILTIN_DIRECTORY,
    Checkpoint,
    builtin_checkpoint,
    display_name,
    open_checkpoint,
    synthetic_checkpoint,
)
from gemma_export.checkpoint.hashing import HashedFile, hash_files
from gemma_export.checkpoint.hub import (
    HubRepository,
    HubWeights,
    check_cached,
    check_revision,
    download_weights,
    fetch,
    is_repository_id,
    meant_repository,
    open_hub_checkpoint,
    open_repository,
)
from gemma_export.checkpoint.safetensors_source import SafetensorsSource
from gemma_export.checkpoint.synthetic import GENERATOR_VERSION, SyntheticSource

__all__ = [
    "BUILTIN_DIRECTORY",
    "GENERATOR_VERSION",
    "Checkpoint",
    "HashedFile",
    "HubRepository",
    "HubWeights",
    "SafetensorsSource",
    "SyntheticSource",
    "builtin_checkpoint",
    "check_cached",
    "check_revision",
    "check_tensors",
    "display_name",
    "download_weights",
    "fetch",
    "hash_files",
    "is_repository_id",
    "meant_repository",
    "open_checkpoint",
    "open_hub_checkpoint",
    "open_repository",
    "same_bytes",
    "synthetic_checkpoint",
]
