"""The texts that a validation runs on: written for this project, in slices, cut into tokens by the folder's tokenizer.

texts.toml   the texts
slices       the texts as strings, and the long document made of its sentences
documents    how many of them, how long
"""

from __future__ import annotations

from gemma_validation.texts.documents import documents_for, folder_documents
from gemma_validation.texts.folder_tokenizer import folder_tokenizer
from gemma_validation.texts.slices import SliceText, probe_texts, slice_texts

__all__ = ["SliceText", "documents_for", "folder_documents", "folder_tokenizer", "probe_texts", "slice_texts"]
