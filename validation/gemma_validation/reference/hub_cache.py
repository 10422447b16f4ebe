"""Repositories that are already in the Hub cache. Nothing is ever asked of the Hub."""

from __future__ import annotations

from pathlib import Path

from gemma_export.checkpoint import is_repository_id

__all__ = ["cached_snapshot"]


def cached_snapshot(repository: str, revision: str | None, *, file: str = "config.json") -> Path | None:
    """The folder of a repository's commit in the Hub cache.

    Args:
        repository: ORG/NAME; any other text is in no cache.
        revision: branch, tag or commit; None means main.
        file: must be there.

    Returns:
        None where the cache does not have it, or the Hub's library is not installed.
    """
    if not is_repository_id(repository):
        return None
    try:
        # looks at files only: https://huggingface.co/docs/huggingface_hub/package_reference/cache
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    path = try_to_load_from_cache(repository, file, revision=revision)
    return Path(path).parent if isinstance(path, str) else None
