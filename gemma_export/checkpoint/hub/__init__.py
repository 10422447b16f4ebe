"""Checkpoints and other files from the Hub, through the ordinary Hub cache. Torch-free.

huggingface_hub is imported by `library` alone, and only when a repository is really asked for: it gives the token, the
HTTP session (proxies, certificates), the endpoint and the places of the cache.
"""

from __future__ import annotations

from gemma_export.checkpoint.hub.checkpoint import check_cached, download_weights, open_hub_checkpoint
from gemma_export.checkpoint.hub.fetch import FetchedFiles, fetch
from gemma_export.checkpoint.hub.names import check_revision, is_repository_id, meant_repository
from gemma_export.checkpoint.hub.repository import HubRepository, open_repository
from gemma_export.checkpoint.hub.weights import HubWeights

__all__ = [
    "FetchedFiles",
    "HubRepository",
    "HubWeights",
    "check_cached",
    "check_revision",
    "download_weights",
    "fetch",
    "is_repository_id",
    "meant_repository",
    "open_hub_checkpoint",
    "open_repository",
]
