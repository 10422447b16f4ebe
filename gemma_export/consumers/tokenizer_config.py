"""tokenizer_config.json: what a checkpoint says, completed; or made from scratch.

Keys: https://huggingface.co/docs/transformers/main_classes/tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma_export.consumers.chat_template import END_OF_TURN, START_OF_TURN, chat_template

__all__ = ["complete_config", "new_config"]


def new_config(
    tokens: Mapping[int, str], roles: Mapping[str, int], *, generic: bool, family: str = "gemma"
) -> dict[str, Any]:
    """The configuration of a tokenizer that came without one.

    Args:
        tokens: id -> text of the special tokens.
        roles: "bos", "eos", "pad", "unk" -> id.
        generic: transformers' Gemma class would tokenize otherwise than the file, because it builds Gemma's
            normalizer whatever the file says.
        family: whose chat template it gets.
    """
    config: dict[str, Any] = {
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast" if generic else "GemmaTokenizer",
    }
    texts = set(tokens.values())
    # null where there is none: the class would otherwise add its own as new tokens beyond the embedding table
    for role in ("bos", "eos", "pad", "unk"):
        config[f"{role}_token"] = tokens.get(roles[role]) if role in roles else None
    config["mask_token"] = "<mask>" if "<mask>" in texts else None
    if {START_OF_TURN, END_OF_TURN} <= texts:
        config["additional_special_tokens"] = [START_OF_TURN, END_OF_TURN]
        config["chat_template"] = chat_template(family)
    return config


def complete_config(
    config: Mapping[str, Any],
    tokens: Mapping[int, str],
    roles: Mapping[str, int],
    *,
    template: str | None,
    context: int,
) -> dict[str, Any]:
    """Keeps what `config` says and adds what readers need and it lacks.

    Args:
        config: tokenizer_config.json, parsed.
        tokens: id -> text of the special tokens.
        roles: "bos", "eos", "pad", "unk" -> id.
        template: the chat template of a file of its own.
        context: positions of the exported graph; a longer model_max_length would promise what the graph cannot do.
    """
    completed = dict(config)
    if template is not None and not config.get("chat_template"):
        completed["chat_template"] = template
    # Gemma is trained with it: https://ai.google.dev/gemma/docs/core/prompt-structure
    completed.setdefault("add_bos_token", True)
    completed.setdefault("tokenizer_class", "GemmaTokenizer")
    for role, token in roles.items():
        if token in tokens:
            completed.setdefault(f"{role}_token", tokens[token])
    length = config.get("model_max_length")
    if not isinstance(length, int | float) or isinstance(length, bool) or length > context:
        completed["model_max_length"] = context
    return completed
