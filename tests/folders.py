"""Altered copies of exported folders."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from gemma_runtime.manifest import MANIFEST_FILE, Manifest, read_manifest

__all__ = ["altered", "rewrite_manifest", "swapped_ids"]


def altered(folder: Path, target: Path, files: dict[str, bytes | None]) -> Path:
    """A copy with other contents (None: without the file) whose manifest says so: right by hashes, wrong by content."""
    shutil.copytree(folder, target)
    for name, content in files.items():
        if content is None:
            (target / name).unlink()
        else:
            (target / name).write_bytes(content)
    entries = []
    for entry in read_manifest(folder).files:
        path = target / entry.path
        if path.exists():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            entries.append(dataclasses.replace(entry, size=path.stat().st_size, sha256=digest))
    rewrite_manifest(target, files=tuple(entries))
    return target


def rewrite_manifest(folder: Path, **changes: Any) -> Manifest:
    """Writes the manifest with other values."""
    manifest = dataclasses.replace(read_manifest(folder), **changes)
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def swapped_ids(tokenizer_json: bytes) -> bytes:
    """A tokenizer.json in which the last two ids have changed places: few texts tell."""
    content = json.loads(tokenizer_json)
    vocabulary = content["model"]["vocab"]
    last, before = sorted(vocabulary, key=vocabulary.__getitem__)[:-3:-1]
    vocabulary[last], vocabulary[before] = vocabulary[before], vocabulary[last]
    return json.dumps(content, ensure_ascii=False).encode()
