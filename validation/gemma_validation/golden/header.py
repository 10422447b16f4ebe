"""The header of a golden pack: JSON, read strictly."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gemma_validation.documents import Document
from gemma_validation.errors import GoldenPackError
from gemma_validation.findings import ReferenceAbout
from gemma_validation.golden.identity import GoldenIdentity

__all__ = ["HINT", "Header", "header_json", "parse_header"]

HINT = "Fetch the file again, or make it again with gemma-validate --make-golden FILE."
_SHA256 = re.compile(r"[0-9a-f]{64}")
Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """Everything but the numbers."""

    identity: GoldenIdentity
    # what computed it
    reference: ReferenceAbout
    documents: tuple[Document, ...]
    # chosen positions of each document, at least one
    rows: tuple[int, ...]
    # known tokens of each position
    top: int


def header_json(header: Header) -> bytes:
    """The same header gives the same bytes."""
    return json.dumps(dataclasses.asdict(header), sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def parse_header(file: Path, text: bytes) -> Header:
    """The header that `header_json` wrote.

    Args:
        file: for messages.
        text: JSON.

    Raises:
        GoldenPackError: it is something else.
    """
    try:
        return _header(json.loads(text))
    # RecursionError: nested a thousand deep; TypeError: what should be an object or a list is none
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GoldenPackError(f"{file}: a header that cannot be read: {error!r:.200}", hint=HINT) from error


def _header(content: Any) -> Header:
    _keys(content, Header)
    identity, reference = content["identity"], content["reference"]
    _keys(identity, GoldenIdentity)
    _keys(reference, ReferenceAbout)
    header = Header(
        identity=GoldenIdentity(
            name=_text(identity["name"]),
            family=_text(identity["family"]),
            vocab_size=_integer(identity["vocab_size"], 1, 1 << 31),
            weights_sha256=_sha256(identity["weights_sha256"]),
            tokenizer_sha256=_optional(identity["tokenizer_sha256"], _sha256),
            tokens_sha256=_optional(identity["tokens_sha256"], _sha256),
        ),
        reference=ReferenceAbout(
            kind=_one_of(reference["kind"], ("transformers", "layerwise", "folder")),
            name=_text(reference["name"]),
            dtype=_text(reference["dtype"]),
            versions=_versions(reference["versions"]),
        ),
        documents=tuple(map(_document, _list(content["documents"]))),
        rows=tuple(_integer(count, 1, 1 << 31) for count in _list(content["rows"])),
        top=_integer(content["top"], 1, 1 << 16),
    )
    vocab_size = header.identity.vocab_size
    if header.top > vocab_size or any(token >= vocab_size for one in header.documents for token in one.token_ids):
        raise ValueError(f"tokens outside the vocabulary of {vocab_size}")
    if len(header.rows) != len(header.documents) or not header.documents:
        raise ValueError(f"{len(header.documents)} documents, rows of {len(header.rows)}")
    if len({document.name for document in header.documents}) != len(header.documents):
        raise ValueError("documents of one name")
    return header


def _versions(content: Any) -> dict[str, str]:
    if not isinstance(content, Mapping):
        raise ValueError(f"expected versions of packages, found {content!r:.60}")
    return {name: _text(version) for name, version in content.items()}


def _document(content: Any) -> Document:
    _keys(content, Document)
    tokens = tuple(_integer(token, 0, 1 << 31) for token in _list(content["token_ids"]))
    return Document(slice=_text(content["slice"]), name=_text(content["name"]), token_ids=tokens)


def _keys(content: Any, kind: type[Any]) -> None:
    expected = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(content, Mapping) or set(content) != expected:
        raise ValueError(f"expected an object of {', '.join(sorted(expected))}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {value!r:.60}")
    return value


def _sha256(value: Any) -> str:
    if not _SHA256.fullmatch(_text(value)):
        raise ValueError(f"expected a SHA-256, found {value!r:.80}")
    return str(value)


def _integer(value: Any, least: int, end: int) -> int:
    # bool is an int
    if type(value) is not int or not least <= value < end:
        raise ValueError(f"expected an integer from {least} to {end - 1}, found {value!r:.60}")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list, found {value!r:.60}")
    return value


def _one_of(value: Any, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise ValueError(f"expected one of {', '.join(known)}, found {value!r:.60}")
    return value


def _optional(value: Any, read: Callable[[Any], Found]) -> Found | None:
    return None if value is None else read(value)
