"""genai_config.json, which makes the folder a model of onnxruntime-genai.

Source of names and ranges: https://onnxruntime.ai/docs/genai/reference/config.html; what the documentation leaves open
was tried on release 0.18.0, which refuses a whole model for one key that it does not know or one value out of range.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_export.consumers.consumer import Consumer, FolderFacts

__all__ = ["GENAI"]

# family -> model.type; "decoder" is genai's word for any decoder with a key-value cache
_TYPES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text"}
_PAST, _PRESENT = "past_key_values.%d.{}", "present.%d.{}"
# float32 arithmetic of genai's sampler: beyond these a temperature divides logits by zero or makes all of them equal
_COLDEST, _HOTTEST = 1e-3, 1e3


def _files(facts: FolderFacts) -> dict[str, bytes | Path]:
    if not _has_named_cache(facts):
        # recurrent state has no place in the configuration's decoder section
        return {}
    config = {"model": _model(facts), "search": _search(facts)}
    return {"genai_config.json": (json.dumps(config, indent=2, allow_nan=False) + "\n").encode()}


def _has_named_cache(facts: FolderFacts) -> bool:
    """Whether layer i's state is what the name patterns say, for every i."""
    return all(
        state.kind == "key_value"
        and state.past_names == tuple(_PAST.format(part) % layer for part in ("key", "value"))
        and state.present_names == tuple(_PRESENT.format(part) % layer for part in ("key", "value"))
        for layer, state in enumerate(facts.states)
    )


def _model(facts: FolderFacts) -> dict[str, Any]:
    spec = facts.spec
    return {
        "type": _TYPES.get(spec.family, "decoder"),
        "context_length": spec.max_position_embeddings,
        "vocab_size": spec.vocab_size,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": _stop_ids(facts),
        "pad_token_id": spec.pad_token_id,
        "decoder": {
            "filename": _graph(facts),
            # no provider named: the CPU, and what a program appends
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "hidden_size": spec.hidden_size,
            "head_size": spec.head_dim,
            "num_attention_heads": spec.num_attention_heads,
            "num_key_value_heads": spec.num_key_value_heads,
            "num_hidden_layers": spec.num_hidden_layers,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": _PAST.format("key"),
                "past_value_names": _PAST.format("value"),
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": _PRESENT.format("key"),
                "present_value_names": _PRESENT.format("value"),
            },
        },
    }


def _graph(facts: FolderFacts) -> str:
    """The main graph; with a number of positions it is the twin with all: genai binds logits for one or for all."""
    files = {role: (path, logits) for path, (role, logits) in facts.graphs.items()}
    path, logits = files["main"]
    return path if logits in ("last", "all") else files["all"][0]


def _stop_ids(facts: FolderFacts) -> list[int]:
    """What generation_config.json says, as every other reader of the folder takes it, else config.json."""
    found = (facts.generation_config or {}).get("eos_token_id")
    if found is None:
        return list(facts.spec.eos_token_ids)
    return list(found) if isinstance(found, list) else [found]


def _search(facts: FolderFacts) -> dict[str, Any]:
    generation = facts.generation_config or {}
    search: dict[str, Any] = {
        "do_sample": generation.get("do_sample") is True and generation.get("temperature") != 0,
        "max_length": facts.spec.max_position_embeddings,
        # one buffer for past and present needs a cache whose rows start at index 0
        "past_present_share_buffer": facts.cache_layout == "compacted",
    }
    return search | _sampling(generation, facts.spec.vocab_size)


def _sampling(generation: Mapping[str, Any], vocab_size: int) -> dict[str, float | int]:
    """The checkpoint's sampling, as far as genai takes it; its own defaults stand for the rest.

    Beams are left out: genai refuses them beside the sampling keys, and no Gemma checkpoint asks for them.
    """
    found: dict[str, float | int] = {}
    temperature = _number(generation.get("temperature"))
    if temperature is not None and _COLDEST <= temperature <= _HOTTEST:
        found["temperature"] = temperature
    top_k = generation.get("top_k")
    if isinstance(top_k, int) and not isinstance(top_k, bool) and top_k >= 0:
        # more than the vocabulary is refused; 0 means no limit to both
        found["top_k"] = min(top_k, vocab_size)
    top_p = _number(generation.get("top_p"))
    if top_p is not None and 0 < top_p <= 1:
        found["top_p"] = top_p
    penalty = _number(generation.get("repetition_penalty"))
    if penalty is not None and 0 < penalty <= _HOTTEST:
        found["repetition_penalty"] = penalty
    return found


def _number(value: Any) -> float | int | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # integers of any size are finite, and too large ones cannot be asked
    return value if isinstance(value, int) or math.isfinite(value) else None


GENAI = Consumer(name="onnxruntime-genai", files=_files)
