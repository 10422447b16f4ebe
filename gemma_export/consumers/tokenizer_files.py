"""Tokenizer files: those of the checkpoint, completed; tokenizer.json made where there is only tokenizer.model."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_export.checkpoint.json_file import read_json
from gemma_export.config import DecoderSpec
from gemma_export.consumers.added_tokens import AddedToken, tokens_on_top
from gemma_export.consumers.consumer import Consumer, FolderFacts
from gemma_export.consumers.sentencepiece_model import PieceType, SentencePieceModel, parse_sentencepiece
from gemma_export.consumers.tokenizer_check import TokenizerSummary, check_ids, read_tokenizer_json
from gemma_export.consumers.tokenizer_config import complete_config, new_config
from gemma_export.consumers.tokenizer_json import is_plain, tokenizer_json
from gemma_export.consumers.tokenizer_probe import check_agreement
from gemma_export.errors import ConfigError, TokenizerError, UnfaithfulTokenizerError

__all__ = ["TOKENIZER_FILES"]

_JSON, _MODEL, _CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
# ten times the largest released one
_MAX_MODEL_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tokens:
    """The special and added tokens, and what was made of a SentencePiece model."""

    summary: TokenizerSummary
    # "bos", "eos", "pad", "unk" -> id
    roles: Mapping[str, int]
    # transformers' Gemma class reads the folder's tokenizer right
    gemma: bool = True
    # tokenizer.json, unless the checkpoint has one or it would be unfaithful
    made: bytes | None = None
    warnings: tuple[str, ...] = ()

    @property
    def special(self) -> dict[int, str]:
        """Texts by id."""
        return {token: text for text, token in self.summary.added.items()}


def _files(facts: FolderFacts) -> dict[str, bytes | Path]:
    files: dict[str, bytes | Path] = dict(facts.tokenizer_files)
    if files.keys().isdisjoint((_JSON, _MODEL)):
        return files
    tokens = _tokens(facts)
    if tokens.made is not None:
        files[_JSON] = tokens.made
    found = read_json(facts.tokenizer_files[_CONFIG]) if _CONFIG in files else None
    config = found
    if config is None:
        config = new_config(tokens.special, tokens.roles, generic=not tokens.gemma, family=facts.spec.family)
    template = _template(facts.tokenizer_files, config)
    completed = complete_config(
        config, tokens.special, tokens.roles, template=template, context=facts.spec.max_position_embeddings
    )
    if completed != found:
        text = json.dumps(completed, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        files[_CONFIG] = f"{text}\n".encode()
    return files


def _check(facts: FolderFacts) -> tuple[str, ...]:
    if facts.tokenizer_files.keys().isdisjoint((_JSON, _MODEL)):
        return ()
    tokens = _tokens(facts)
    config = read_json(facts.tokenizer_files[_CONFIG]) if _CONFIG in facts.tokenizer_files else {}
    generation = facts.generation_config or {}
    file = _JSON if _JSON in facts.tokenizer_files else _MODEL
    return tokens.warnings + check_ids(tokens.summary, facts.spec, config, generation, file=file)


def _template(files: Mapping[str, Path], config: Mapping[str, Any]) -> str | None:
    """The chat template of a file of its own; the newer kind of file goes first."""
    if (jinja := files.get("chat_template.jinja")) is not None:
        try:
            return jinja.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"chat_template.jinja is not UTF-8: {error}", hint="Fetch it again.") from error
    if (path := files.get("chat_template.json")) is not None:
        template = read_json(path).get("chat_template")
        if not isinstance(template, str):
            raise ConfigError(
                f"chat_template.json: expected a text under chat_template, found {type(template).__name__}",
                hint="Correct the file, or fetch it again.",
            )
        return template
    return None


def _tokens(facts: FolderFacts) -> _Tokens:
    files, spec = facts.tokenizer_files, facts.spec
    roles = {"bos": spec.bos_token_id, "eos": spec.eos_token_ids[0], "pad": spec.pad_token_id}
    if _JSON in files:
        summary = read_tokenizer_json(files[_JSON])
        unknown = {"unk": summary.added["<unk>"]} if "<unk>" in summary.added else {}
        return _Tokens(summary=summary, roles=roles | unknown)
    path = files[_MODEL]
    if (size := path.stat().st_size) > _MAX_MODEL_BYTES:
        raise TokenizerError(
            f"tokenizer.model: expected at most {_MAX_MODEL_BYTES} bytes, found {size}",
            hint="This is not the file it claims to be: fetch it again.",
        )
    try:
        content = path.read_bytes()
        on_top = [files[name].read_bytes() if name in files else None for name in ("added_tokens.json", _CONFIG)]
    except OSError as error:
        raise TokenizerError(f"tokenizer.model cannot be read: {error.strerror}", hint="Check its rights.") from error
    for name in ("added_tokens.json", _CONFIG):
        if name in files:
            read_json(files[name])
    return _convert(content, *on_top, spec)


# planning and writing ask for the same files: the conversion of a real vocabulary takes seconds
@functools.lru_cache(maxsize=1)
def _convert(content: bytes, added: bytes | None, config: bytes | None, spec: DecoderSpec) -> _Tokens:
    model = parse_sentencepiece(content)
    _check_model(model, spec)
    made: bytes | None = None
    on_top: tuple[AddedToken, ...] = ()
    warnings = []
    try:
        on_top = tokens_on_top(model, _parsed(added), _parsed(config))
        made = tokenizer_json(model, bos=model.pieces[spec.bos_token_id], added=on_top)
        check_agreement(content, model, made, on_top)
    except UnfaithfulTokenizerError as error:
        made = None
        warnings.append(error.message)
    special = {
        model.pieces[token]: token
        for token in model.of_type(PieceType.CONTROL, PieceType.UNKNOWN, PieceType.USER_DEFINED)
    }
    special |= {token.content: len(model.pieces) + index for index, token in enumerate(on_top)}
    return _Tokens(
        summary=TokenizerSummary(highest_id=len(model.pieces) - 1, added=special),
        roles={
            "bos": spec.bos_token_id,
            "eos": spec.eos_token_ids[0],
            "pad": spec.pad_token_id,
            "unk": model.unknown_id,
        },
        gemma=is_plain(model),
        made=made,
        warnings=tuple(warnings),
    )


def _parsed(content: bytes | None) -> dict[str, Any] | None:
    parsed: dict[str, Any] | None = None if content is None else json.loads(content.decode("utf-8-sig"))
    return parsed


def _check_model(model: SentencePieceModel, spec: DecoderSpec) -> None:
    if len(model.pieces) > spec.vocab_size:
        raise ConfigError(
            f"tokenizer.model has {len(model.pieces)} pieces, the embedding table has {spec.vocab_size} rows",
            hint="The tokenizer is of another model: fetch tokenizer.model and config.json from one place.",
        )
    own = model.pieces.index(model.bos_piece) if model.bos_piece in model.pieces else None
    if own is not None and model.types[own] is PieceType.CONTROL and own != spec.bos_token_id:
        raise ConfigError(
            f"{model.bos_piece!r} has id {own} in tokenizer.model, bos_token_id is {spec.bos_token_id} in config.json",
            hint="The tokenizer is of another model: fetch tokenizer.model and config.json from one place.",
        )
    if spec.bos_token_id >= len(model.pieces):
        raise ConfigError(
            f"bos_token_id is {spec.bos_token_id} in config.json, tokenizer.model has {len(model.pieces)} pieces",
            hint="The tokenizer is of another model: fetch tokenizer.model and config.json from one place.",
        )


TOKENIZER_FILES = Consumer(name="tokenizer", files=_files, check=_check)
