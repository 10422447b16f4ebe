"""Where weights come from: local safetensors, the Hub, or a synthetic generator. Torch-free and never pickle."""

from __future__ import annotations

from gemma_export.checkpoint.check import check_tensors, same_bytes
from gemma_export.checkpoint.checkpoint import (
    BUILTIN_DIRECTORIES,
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
from gemma_export.checkpoint.quantisation import QUANTISATION_KEY, Quantisation, read_quantisation
from gemma_export.checkpoint.quantised_levels import (
    Levels,
    check_levels,
    code_rows,
    input_order,
    read_levels,
)
from gemma_export.checkpoint.quantised_source import QuantisedSource, QuantisedTensor, architecture_view
from gemma_export.checkpoint.safetensors_source import SafetensorsSource
from gemma_export.checkpoint.synthetic import GENERATOR_VERSION, SyntheticSource

__all__ = [
    "BUILTIN_DIRECTORIES",
    "BUILTIN_DIRECTORY",
    "GENERATOR_VERSION",
    "QUANTISATION_KEY",
    "Checkpoint",
    "HashedFile",
    "HubRepository",
    "HubWeights",
    "Levels",
    "Quantisation",
    "QuantisedSource",
    "QuantisedTensor",
    "SafetensorsSource",
    "SyntheticSource",
    "architecture_view",
    "builtin_checkpoint",
    "check_cached",
    "check_levels",
    "check_revision",
    "check_tensors",
    "code_rows",
    "display_name",
    "download_weights",
    "fetch",
    "hash_files",
    "input_order",
    "is_repository_id",
    "meant_repository",
    "open_checkpoint",
    "open_hub_checkpoint",
    "open_repository",
    "read_levels",
    "read_quantisation",
    "same_bytes",
    "synthetic_checkpoint",
]
