"""Where downloaded checkpoints and gemma-export's own files lie, and how much they hold. Only looks."""

from __future__ import annotations

import dataclasses
import os
import stat
import sys
from pathlib import Path

__all__ = ["Cache", "export_cache", "hub_cache", "look_at_caches"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """One cache folder."""

    # "hub" or "gemma-export"
    name: str
    path: str
    exists: bool
    # bytes and files found, each hard-linked file once; a part of them where `error` says so
    size: int
    files: int
    error: str | None


def look_at_caches() -> tuple[Cache, ...]:
    """The Hub's cache and gemma-export's own."""
    return _measured("hub", hub_cache()), _measured("gemma-export", export_cache())


def hub_cache() -> Path:
    """Where huggingface_hub keeps repositories.

    The rules are those of https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables, read
    here so that the package need not be installed.
    """
    home = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
    home = _expanded(os.environ.get("HF_HOME", os.path.join(home, "huggingface")))
    older = os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    return Path(_expanded(os.environ.get("HF_HUB_CACHE", older)))


def export_cache() -> Path:
    """Where gemma-export keeps what outlives a run: $GEMMA_EXPORT_CACHE, or the user's cache directory."""
    chosen = os.environ.get("GEMMA_EXPORT_CACHE")
    if chosen:
        return Path(chosen)
    try:
        import platformdirs
    except ImportError:
        return _user_cache()
    return Path(platformdirs.user_cache_dir("gemma-export", appauthor=False))


def _user_cache() -> Path:
    """As platformdirs has it, which comes with the exporter only."""
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "gemma-export" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "gemma-export"
    chosen = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(chosen) if chosen else home / ".cache") / "gemma-export"


def _expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))


def _measured(name: str, path: Path) -> Cache:
    size, files = 0, 0
    seen: set[tuple[int, int]] = set()
    errors: list[OSError] = []
    try:
        path.stat()
        exists = True
    except FileNotFoundError:
        return Cache(name=name, path=str(path), exists=False, size=0, files=0, error=None)
    except OSError as error:
        exists = False
        errors.append(error)
    for folder, _, names in os.walk(path, onerror=errors.append) if exists else ():
        for entry in names:
            try:
                status = os.lstat(os.path.join(folder, entry))
            except OSError as error:
                errors.append(error)
                continue
            # the Hub's snapshots are links to its blobs
            if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                size, files = size + status.st_size, files + 1
    told = None if not errors else f"{errors[0].filename}: {errors[0].strerror}"
    return Cache(name=name, path=str(path), exists=exists, size=size, files=files, error=told)
