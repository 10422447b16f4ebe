"""Which model a golden pack is of: what does not change with the number format, the target or the release."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from gemma_runtime.manifest import Manifest, SourceFile
from gemma_runtime.tokenizer import Tokenizer
from gemma_validation.texts import folder_tokenizer, probe_texts

__all__ = ["GoldenIdentity", "identity_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoldenIdentity:
    """A checkpoint and its tokenizer."""

    # for messages only: the variant, or the source's name
    name: str
    family: str
    vocab_size: int
    # SHA-256 over the hashes of the source's weights and of an adapter's, or over the seed of synthetic weights
    weights_sha256: str
    # SHA-256 over the hashes of the source's vocabulary; None for a source without a tokenizer
    tokenizer_sha256: str | None
    # SHA-256 over every token of the folder's tokenizer and its cuts of some texts; None for a folder without one
    tokens_sha256: str | None


def identity_of(directory: Path, manifest: Manifest) -> GoldenIdentity:
    """The identity of an exported folder's source, and of the tokenizer that the folder has.

    Raises:
        FolderUnreadableError, MissingPackageError: its tokenizer cannot be read.
    """
    tokens = folder_tokenizer(directory, manifest)
    source = manifest.source
    weights = [entry for entry in source.files if not entry.name.startswith("tokenizer")]
    tokenizer = [entry for entry in source.files if entry.name in ("tokenizer.json", "tokenizer.model")]
    return GoldenIdentity(
        name=manifest.variant or source.repository or source.name or source.kind,
        family=manifest.family,
        vocab_size=manifest.vocab_size,
        weights_sha256=_digest(
            # generation_config.json and the like decide nothing of what is computed
            _hashes(entry for entry in weights if entry.name.endswith((".safetensors", ".bin")) or _is_config(entry)),
            _hashes(source.adapter.files) if source.adapter is not None else None,
            source.seed,
            source.generator_version,
        ),
        tokenizer_sha256=_digest(_hashes(tokenizer)) if tokenizer else None,
        tokens_sha256=None if tokens is None else _tokens_digest(tokens),
    )


def _tokens_digest(tokenizer: Tokenizer) -> str:
    """The files of one tokenizer differ, what is digested here does not: tokenizer.json and tokenizer.model agree."""
    digest = hashlib.sha256(_digest(tokenizer.bos_id, tokenizer.size).encode())
    for token in range(tokenizer.size):
        content = tokenizer.token_bytes(token)
        digest.update(len(content).to_bytes(4, "little") + content)
    for text in probe_texts():
        digest.update(_digest(tokenizer.encode(text)).encode())
    return digest.hexdigest()


def _is_config(entry: SourceFile) -> bool:
    return entry.name == "config.json"


def _hashes(files: Iterable[SourceFile]) -> list[tuple[str, str]]:
    return sorted((entry.name, entry.sha256) for entry in files)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
