"""Where weights come from: local safetensors, the Hub, or a synthetic generator. Torch-free and never pickle."""

from __future__ import annotations

from gemma_export.checkpoint.check import check_tensors
from gemma_export.checkpoint.checkpoint import (
    BUILTIN_DIRECTORY,
    Checkpoint,
    builtin_checkpoint,
    open_checkpoint,
    synthetic_checkpoint,
)
from gemma_export.checkpoint.hashing import HashedFile, hash_files
from gemma_export.checkpoint.hub import (
    HubWeights,
    check_cached,
    check_revision,
    download_weights,
    is_repository_id,
    open_hub_checkpoint,
)
from gemma_export.checkpoint.safetensors_source import SafetensorsSource
from gemma_export.checkpoint.synthetic import GENERATOR_VERSION, SyntheticSource

__all__ = [
    "BUILTIN_DIRECTORY",
    "GENERATOR_VERSION",
    "Checkpoint",
    "HashedFile",
    "HubWeights",
    "SafetensorsSource",
    "SyntheticSource",
    "builtin_checkpoint",
    "check_cached",
    "check_revision",
    "check_tensors",
    "download_weights",
    "hash_files",
    "is_repository_id",
    "open_checkpoint",
    "open_hub_checkpoint",
    "synthetic_checkpoint",
]
