"""Files that readers of the folder need beside the graphs, one file per consumer.

`CONSUMERS` is the registry: to add one, add a file and a line here.
"""

from __future__ import annotations

from gemma_export.consumers.consumer import Consumer, FolderFacts
from gemma_export.consumers.genai import GENAI
from gemma_export.consumers.model_card import MODEL_CARD
from gemma_export.consumers.terms import TERMS
from gemma_export.consumers.tokenizer_files import TOKENIZER_FILES
from gemma_export.consumers.transformers_files import TRANSFORMERS_FILES

__all__ = ["CONSUMERS", "Consumer", "FolderFacts"]

CONSUMERS: tuple[Consumer, ...] = (TRANSFORMERS_FILES, TOKENIZER_FILES, GENAI, MODEL_CARD, TERMS)
