"""Reads a small JSON file of a checkpoint without trusting it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemma_export.errors import CheckpointError, ConfigError

__all__ = ["read_json", "unique_keys"]

_MAX_BYTES = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        ConfigError: not JSON, or not an object.
        CheckpointError: unreadable, or far larger than such a file is.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(
                f"{path.name}: expected at most {_MAX_BYTES} bytes of JSON, found {path.stat().st_size}",
                hint="This is not the file it claims to be: fetch it again.",
            )
        text = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {error.strerror}", hint="Check the file's rights."
        ) from error
    try:
        content = json.loads(text.decode("utf-8-sig"), object_pairs_hook=unique_keys, parse_constant=_no_constant)
        # a lone surrogate is no character: nothing that copies it could write it
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} is not JSON: {error}", hint="Correct the file, or fetch it again.") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path.name}: expected a JSON object, found {type(content).__name__}", hint="Fetch the file again."
        )
    return content


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object_pairs_hook that refuses a key that stands twice; linear, for hostile files have a million keys."""
    content = dict(pairs)
    if len(content) != len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"key {name[:80]!r} twice")
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
