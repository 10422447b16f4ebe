"""config.json and generation_config.json, as transformers-style loaders expect them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemma_export.consumers.consumer import Consumer, FolderFacts
from gemma_export.consumers.transformers_js import SECTION, transformers_js_config

__all__ = ["TRANSFORMERS_FILES"]


def _files(facts: FolderFacts) -> dict[str, bytes | Path]:
    spec = facts.spec
    # the rotary tables of the graph are as long as this says
    config = {**facts.config, "max_position_embeddings": spec.max_position_embeddings}
    # the path of the machine that saved the checkpoint
    config.pop("_name_or_path", None)
    # a section that came with the checkpoint describes other graphs
    config.pop(SECTION, None)
    section = transformers_js_config(facts)
    if section is not None:
        config[SECTION] = section
    # a null is a key that is not there
    generation = {key: value for key, value in (facts.generation_config or {}).items() if value is not None}
    generation.setdefault("bos_token_id", spec.bos_token_id)
    generation.setdefault("eos_token_id", list(spec.eos_token_ids))
    generation.setdefault("pad_token_id", spec.pad_token_id)
    return {
        "config.json": _json(config),
        "generation_config.json": _json(generation),
    }


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


TRANSFORMERS_FILES = Consumer(name="transformers", files=_files)
