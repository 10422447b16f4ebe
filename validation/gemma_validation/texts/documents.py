"""How many texts a suite takes, and how much of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from gemma_export.checkpoint.json_file import read_json
from gemma_export.errors import GemmaExportError
from gemma_export.families import family_of
from gemma_runtime.manifest import Manifest
from gemma_runtime.tokenizer import Tokenizer
from gemma_validation.documents import Document
from gemma_validation.errors import MismatchError
from gemma_validation.texts.folder_tokenizer import folder_tokenizer
from gemma_validation.texts.slices import slice_texts

__all__ = ["documents_for", "folder_documents"]

Suite = Literal["quick", "full"]

# a vocabulary from here on counts as large; Gemma's have 256,000 and more
_LARGE_VOCABULARY = 1 << 16
# Gemma's BOS, EOS and padding, for folders that say nothing of them
_BOS = 2
_SPECIAL = (_BOS, 1, 0)
_SEED = 20240221
# tokens of the long document behind the first one that layers with a window do not see
_PAST_WINDOW = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Share:
    """What a suite takes of a slice: documents, and tokens of each."""

    documents: int
    tokens: int


# Quick is 1,300 positions of a small vocabulary and 530 of a large one: there every position has a megabyte of logits
# on each side and several times that in the metrics' float64, a bfloat16 run as noise floor comes on top, and a quick
# run of a 2B may take five minutes on two cores and 4 GiB. Many short documents serve better than a few long ones,
# because the confidence interval resamples whole documents, and parts of the long one (metrics/bootstrap.py). Full is
# ten times that.
_SHARES: Mapping[tuple[Suite, bool], Mapping[str, _Share]] = {
    ("quick", False): {
        "code": _Share(documents=4, tokens=72),
        "prose": _Share(documents=4, tokens=64),
        "scripts": _Share(documents=8, tokens=32),
        "long": _Share(documents=1, tokens=300),
        "chat": _Share(documents=3, tokens=64),
    },
    ("quick", True): {
        "code": _Share(documents=3, tokens=36),
        "prose": _Share(documents=3, tokens=32),
        "scripts": _Share(documents=8, tokens=16),
        "long": _Share(documents=1, tokens=128),
        "chat": _Share(documents=2, tokens=36),
    },
    ("full", False): {
        "code": _Share(documents=8, tokens=400),
        "prose": _Share(documents=8, tokens=320),
        "scripts": _Share(documents=12, tokens=180),
        "long": _Share(documents=1, tokens=3600),
        "chat": _Share(documents=6, tokens=240),
    },
    ("full", True): {
        "code": _Share(documents=8, tokens=170),
        "prose": _Share(documents=8, tokens=110),
        "scripts": _Share(documents=12, tokens=50),
        "long": _Share(documents=1, tokens=2000),
        "chat": _Share(documents=6, tokens=100),
    },
}


def folder_documents(
    directory: Path, manifest: Manifest, *, suite: Suite, limit: int | None = None
) -> tuple[Document, ...]:
    """The documents that an exported folder is validated on; see `documents_for`.

    Raises:
        FolderUnreadableError, MissingPackageError: its tokenizer cannot be read.
        MismatchError: its tokenizer is another model's.
    """
    return documents_for(
        folder_tokenizer(directory, manifest),
        suite=suite,
        vocab_size=manifest.vocab_size,
        context_length=manifest.context_length,
        limit=limit,
        special_ids=_special_ids(directory),
        window=_window(directory),
    )


def documents_for(
    tokenizer: Tokenizer | None,
    *,
    suite: Suite,
    vocab_size: int,
    context_length: int,
    limit: int | None = None,
    special_ids: tuple[int, ...] = _SPECIAL,
    window: int = 0,
) -> tuple[Document, ...]:
    """Documents of every slice, BOS first; the same arguments give the same documents.

    Args:
        tokenizer: of the folder; None gives the slice "random" of random ids in the same amounts.
        suite: "quick" or "full".
        vocab_size: rows of the embedding table.
        context_length: no document is longer.
        limit: most positions of all documents together; all become shorter in proportion, of at least two tokens.
        special_ids: BOS first, then others that random ids leave out.
        window: the largest of the layers', 0 where none has one. The long document of a full suite goes on behind it,
            as far as context and text allow; a quick one's is the same for all models.

    Raises:
        MismatchError: the tokenizer gives ids that the embedding has no row for.
    """
    shares = _SHARES[suite, vocab_size >= _LARGE_VOCABULARY]
    if suite == "full" and window:
        long = shares["long"]
        longer = dataclasses.replace(long, tokens=max(long.tokens, window + _PAST_WINDOW))
        shares = {**shares, "long": longer}
    if tokenizer is None:
        documents = _random(shares, vocab_size, context_length, special_ids)
    else:
        documents = _texts(tokenizer, shares, context_length)
        largest = max(max(document.token_ids) for document in documents)
        if largest >= vocab_size:
            raise MismatchError(
                f"the tokenizer gives token id {largest}, the embedding has {vocab_size} rows",
                hint="Tokenizer and weights are of different models: export again.",
            )
    total = sum(len(document.token_ids) for document in documents)
    if limit is None or total <= limit:
        return documents
    return tuple(
        dataclasses.replace(document, token_ids=document.token_ids[: max(2, len(document.token_ids) * limit // total)])
        for document in documents
    )


def _texts(tokenizer: Tokenizer, shares: Mapping[str, _Share], context_length: int) -> tuple[Document, ...]:
    turns = tokenizer.find("<start_of_turn>") is not None and tokenizer.find("<end_of_turn>") is not None
    documents: list[Document] = []
    taken = dict.fromkeys(shares, 0)
    for text in slice_texts(turns=turns):
        share = shares[text.slice]
        if taken[text.slice] < share.documents:
            taken[text.slice] += 1
            ids = tokenizer.encode(text.text)[: min(share.tokens, context_length)]
            documents.append(Document(slice=text.slice, name=text.name, token_ids=tuple(ids)))
    return tuple(documents)


def _random(
    shares: Mapping[str, _Share], vocab_size: int, context_length: int, special_ids: tuple[int, ...]
) -> tuple[Document, ...]:
    ordinary = np.setdiff1d(np.arange(vocab_size), special_ids)
    generator = np.random.default_rng(_SEED)
    # a vocabulary of special tokens only is no model, but no reason to fail here
    ordinary = ordinary if len(ordinary) else np.arange(vocab_size)
    documents: list[Document] = []
    for share in shares.values():
        for _ in range(share.documents):
            ids = generator.choice(ordinary, min(share.tokens, context_length) - 1).tolist()
            name = f"random {len(documents) + 1}"
            documents.append(Document(slice="random", name=name, token_ids=(min(special_ids[0], vocab_size - 1), *ids)))
    return tuple(documents)


def _window(directory: Path) -> int:
    """The largest window of the layers, by the folder's config.json; 0 where none has one, or it cannot be read."""
    try:
        config = read_json(directory / "config.json")
        return max(family_of(config).parse_config(config)[0].windows)
    except GemmaExportError:
        return 0


def _special_ids(directory: Path) -> tuple[int, ...]:
    """BOS, EOS and padding from the folder's config.json, where it has them."""
    try:
        config = read_json(directory / "config.json")
    except GemmaExportError:
        return _SPECIAL
    found = [config.get(key) for key in ("eos_token_id", "pad_token_id")]
    ids = [token for value in found for token in (value if isinstance(value, list) else [value])]
    bos = config.get("bos_token_id")
    known = [token for token in ids if isinstance(token, int) and token >= 0]
    return (bos if isinstance(bos, int) and bos >= 0 else _BOS, *known)
