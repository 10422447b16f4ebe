"""What an export is compared with: found from the manifest or given, known to be of the same model, then computed.

find                    where it is; nothing is downloaded
identity                that it is of the export's model: sizes, hashes, tokens
checkpoint              a checkpoint's configuration and weights, whatever they are stored as
transformers_reference  small models, whole
folder_reference        another export
select                  which of them
greedy, inject          what needs both sides at once
"""

from __future__ import annotations

from gemma_validation.reference.checkpoint import ReferenceCheckpoint, open_reference
from gemma_validation.reference.find import FoundReference, find_reference
from gemma_validation.reference.folder_reference import FolderReference
from gemma_validation.reference.greedy import GreedyText, greedy_divergences, greedy_texts
from gemma_validation.reference.identity import check_checkpoint, check_folder
from gemma_validation.reference.inject import ask_injection, not_exchanged
from gemma_validation.reference.select import (
    choose_reference_provider,
    open_source,
    require_folder,
    runs_whole,
)
from gemma_validation.reference.source import ReferenceSource
from gemma_validation.reference.transformers_reference import TransformersReference

__all__ = [
    "FolderReference",
    "FoundReference",
    "GreedyText",
    "ReferenceCheckpoint",
    "ReferenceSource",
    "TransformersReference",
    "ask_injection",
    "check_checkpoint",
    "check_folder",
    "choose_reference_provider",
    "find_reference",
    "greedy_divergences",
    "greedy_texts",
    "not_exchanged",
    "open_reference",
    "open_source",
    "require_folder",
    "runs_whole",
]
