"""Making a golden pack: the reference once, on a machine that has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gemma_validation.documents import Document
from gemma_validation.errors import ReferenceNotFiniteError
from gemma_validation.findings import ReferenceAbout
from gemma_validation.golden.header import Header
from gemma_validation.golden.identity import GoldenIdentity
from gemma_validation.golden.pack import GoldenRows, write_pack
from gemma_validation.metrics.finite import NotFinite, require_finite
from gemma_validation.metrics.top import top_tokens

__all__ = ["TOP", "make_golden"]

# known tokens of each position
TOP = 256
# enough for a 95 % interval within half of a mean KL; a 2B in int4 computes as many on two cores in well under a minute
_POSITIONS = 512
# fewer of a document are mostly the start of a text
_LEAST_SHARE = 64
# logits of a 256,000-token vocabulary at 64 positions are 65 MB
_ROWS = 64


class _Reference(Protocol):
    @property
    def about(self) -> ReferenceAbout: ...

    def prepare(self, documents: Sequence[Document]) -> None: ...

    def logits(self, document: int, first: int, last: int) -> npt.NDArray[np.float32]: ...


def make_golden(
    file: Path,
    source: _Reference,
    documents: Sequence[Document],
    identity: GoldenIdentity,
    *,
    positions: int = _POSITIONS,
    top: int = TOP,
) -> Header:
    """Runs the reference over the beginnings of documents and writes a pack.

    Documents take turns, the first of each slice first, in equal shares of the positions: every position of a
    beginning is kept, so that no token is computed for nothing. Long contexts are not what a pack is for.

    Args:
        file: is overwritten.
        source: the reference (`gemma_validation.reference`).
        documents: in tokens of the model, each of at least two.
        identity: of the model (`identity_of`).
        positions: in all; fewer where the documents have fewer.
        top: known tokens of each position.

    Returns:
        Everything of the pack but the numbers.

    Raises:
        ReferenceNotFiniteError: the reference computes what is no number; nothing is written.
        GoldenPackError: the file cannot be written.
        ValueError: no document has two tokens, or the logits are not of the identity's vocabulary.
    """
    chosen = _beginnings(documents, positions)
    if not chosen:
        raise ValueError("no document has a token to predict")
    source.prepare(chosen)
    parts = [
        _rows(document, first, logits, min(top, identity.vocab_size))
        for index, document in enumerate(chosen)
        for first, logits in _logits(source, index, document, identity.vocab_size)
    ]
    joined = GoldenRows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})
    header = Header(
        identity=identity,
        reference=source.about,
        documents=tuple(chosen),
        rows=tuple(len(document.token_ids) - 1 for document in chosen),
        top=min(top, identity.vocab_size),
    )
    write_pack(file, header, joined)
    return header


def _beginnings(documents: Sequence[Document], positions: int) -> list[Document]:
    """Documents cut to equal shares of the positions; what short ones leave goes to longer ones."""
    usable = [document for document in _in_turns(documents) if len(document.token_ids) > 1]
    usable = usable[: max(1, positions // _LEAST_SHARE)]
    shares: dict[str, int] = {}
    left = positions
    for turn, document in enumerate(sorted(usable, key=lambda document: len(document.token_ids))):
        shares[document.name] = min(len(document.token_ids) - 1, left // (len(usable) - turn))
        left -= shares[document.name]
    return [
        Document(slice=one.slice, name=one.name, token_ids=one.token_ids[: shares[one.name] + 1])
        for one in usable
        if shares[one.name]
    ]


def _in_turns(documents: Sequence[Document]) -> list[Document]:
    """The first document of each slice, then the second of each, ..."""
    seen: dict[str, int] = {}
    turns = []
    for document in documents:
        seen[document.slice] = seen.get(document.slice, 0) + 1
        turns.append(seen[document.slice])
    return [document for _, document in sorted(zip(turns, documents, strict=True), key=lambda pair: pair[0])]


def _logits(
    source: _Reference, index: int, document: Document, vocab_size: int
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    end = len(document.token_ids) - 1
    for first in range(0, end, _ROWS):
        last = min(first + _ROWS, end)
        logits = source.logits(index, first, last)
        if logits.shape != (last - first, vocab_size):
            raise ValueError(f"expected logits [{last - first}, {vocab_size}], found {logits.shape}")
        yield first, logits


def _rows(document: Document, first: int, logits: npt.NDArray[np.float32], top: int) -> GoldenRows:
    count = len(logits)
    positions = np.arange(first, first + count, dtype=np.int64)
    try:
        require_finite(logits, positions, side="reference", document=document.name)
    except NotFinite as error:
        raise ReferenceNotFiniteError(
            f"no golden pack is made: {error}", hint="Give a reference that computes numbers with --reference."
        ) from error
    ids = top_tokens(logits, top)
    following = np.array(document.token_ids[first + 1 : first + 1 + count], np.int64)
    log_sum, log_tail, mean, squares = (np.empty(count) for _ in range(4))
    for row in range(count):
        wide = logits[row].astype(np.float64)
        mean[row] = wide.mean()
        squares[row] = np.square(wide - mean[row]).sum()
        largest = wide.max()
        exponentials = np.exp(wide - largest)
        log_sum[row] = largest + np.log(exponentials.sum())
        exponentials[ids[row]] = 0
        tail = exponentials.sum()
        log_tail[row] = largest + np.log(tail) if tail > 0 else -np.inf
    return GoldenRows(
        positions=positions,
        ids=ids.astype(np.int32),
        logits=np.take_along_axis(logits, ids, axis=1),
        log_sum=log_sum,
        log_tail=log_tail,
        next_logit=np.take_along_axis(logits, following[:, None], axis=1)[:, 0],
        mean=mean,
        squares=squares,
    )
