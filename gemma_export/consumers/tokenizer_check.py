"""Holds a checkpoint's tokenizer.json against its configuration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_export.config import DecoderSpec
from gemma_export.errors import ConfigError, TokenizerError

__all__ = ["TokenizerSummary", "check_ids", "read_tokenizer_json"]

# four times the largest released one
_MAX_BYTES = 128 << 20
_HINT = "These files belong to different models, or are incomplete: fetch them again from one place."


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerSummary:
    """What a tokenizer.json says about ids."""

    # in the vocabulary, without what was added
    highest_id: int
    # text -> id of added tokens, the special ones among them
    added: Mapping[str, int]


def read_tokenizer_json(path: Path) -> TokenizerSummary:
    """Reads a tokenizer.json of any model type.

    Raises:
        TokenizerError: it is no tokenizer.json.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise TokenizerError(
                f"tokenizer.json: expected at most {_MAX_BYTES} bytes, found {path.stat().st_size}", hint=_HINT
            )
        content = json.loads(path.read_bytes())
        vocabulary, added = content["model"]["vocab"], content.get("added_tokens") or []
        ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        return TokenizerSummary(
            highest_id=max(map(_id, ids), default=-1),
            added={str(token["content"]): _id(token["id"]) for token in added},
        )
    except OSError as error:
        raise TokenizerError(f"tokenizer.json cannot be read: {error.strerror}", hint="Check its rights.") from error
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"tokenizer.json is not a tokenizer: {error}", hint=_HINT) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise TokenizerError(
            f"tokenizer.json is not a tokenizer: model.vocab or added_tokens is not what it must be ({error})",
            hint=_HINT,
        ) from error


def check_ids(
    summary: TokenizerSummary,
    spec: DecoderSpec,
    tokenizer_config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    *,
    file: str = "tokenizer.json",
) -> tuple[str, ...]:
    """Compares ids with the embedding table's rows and with the roles of config.json.

    A different end of text or padding is a warning: fine-tunes for chat end with another token than their base.
    So is an added token beyond the table: Gemma 3's text models have one for images that they do not know.

    Returns:
        warnings.

    Raises:
        ConfigError: the vocabulary does not fit the table, or sequences would start with the wrong token.
    """
    if summary.highest_id >= spec.vocab_size:
        raise ConfigError(
            f"{file} has token ids up to {summary.highest_id}, the embedding table has {spec.vocab_size} rows",
            hint=_HINT,
        )
    warnings = [
        f"{file}: token {text!r} has id {token}, the embedding table has {spec.vocab_size} rows"
        for text, token in summary.added.items()
        if token >= spec.vocab_size
    ]
    bos = summary.added.get(_text(tokenizer_config.get("bos_token", "<bos>")))
    if bos is not None and bos != spec.bos_token_id:
        raise ConfigError(
            f"bos_token has id {bos} in {file}, bos_token_id is {spec.bos_token_id} in config.json", hint=_HINT
        )
    ends = generation_config.get("eos_token_id")
    allowed = {
        "eos": {*spec.eos_token_ids, *(ends if isinstance(ends, list) else [ends])},
        "pad": {spec.pad_token_id, generation_config.get("pad_token_id")},
    }
    for role, ids in allowed.items():
        token = summary.added.get(_text(tokenizer_config.get(f"{role}_token")))
        if token is not None and token not in ids:
            expected = ", ".join(str(value) for value in sorted(value for value in ids if value is not None))
            warnings.append(f"{role}_token has id {token} in {file}, {expected} in the configuration")
    return tuple(warnings)


def _id(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{str(value)[:40]!r} is no token id")
    return value


def _text(token: Any) -> str:
    """A special token is a text, or an object with its text and flags."""
    return str(token.get("content")) if isinstance(token, dict) else str(token)
