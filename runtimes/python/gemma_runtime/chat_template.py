"""What a folder's Jinja template says about system messages, read without a template engine."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gemma_runtime.errors import ManifestError

__all__ = ["folds_system"]

# the variable of the published Gemma 3 template that puts the system's text in front of the first user's
# (https://huggingface.co/google/gemma-3-1b-it); the templates of Gemma 1 and 2 refuse the role
_FOLDING = "first_user_prefix"


def folds_system(directory: Path, *, listed: Collection[str] | None = None) -> bool:
    """Whether a system message goes in front of the first user message.

    Args:
        directory: an exported folder.
        listed: names of the files that may be read; None allows all.

    Raises:
        ManifestError: tokenizer_config.json is broken.
    """
    return any(
        _FOLDING in template
        for name, read in (("chat_template.jinja", _jinja), ("tokenizer_config.json", _configured))
        if (listed is None or name in listed) and (Path(directory) / name).is_file()
        for template in read(Path(directory) / name)
    )


def _jinja(path: Path) -> list[str]:
    return [path.read_text(encoding="utf-8", errors="replace")]


def _configured(path: Path) -> list[str]:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        raise ManifestError(f"{path.name} cannot be read: {error}", hint="Export the folder again.") from error
    # several named ones, of which "default" is meant: https://huggingface.co/docs/transformers/chat_templating
    named = found if isinstance(found, list) else [{"name": "default", "template": found}]
    return [
        entry["template"]
        for entry in named
        if isinstance(entry, dict) and entry.get("name") == "default" and isinstance(entry.get("template"), str)
    ]
