"""The metrics by their definitions, one row at a time in float64: slow, plain, shared by tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from gemma_validation.documents import Document

Rows = npt.NDArray[np.float32]


def log_softmax(row: Any) -> npt.NDArray[np.float64]:
    wide = np.asarray(row, np.float64)
    largest = wide.max()
    logs: npt.NDArray[np.float64] = wide - (largest + np.log(sum(np.exp(wide - largest))))
    return logs


def kl(reference: Any, test: Any) -> float:
    first, second = log_softmax(reference), log_softmax(test)
    return float(sum(np.exp(first) * (first - second)))


def best(row: Any, count: int) -> list[int]:
    return sorted(range(len(row)), key=lambda token: (-float(row[token]), token))[:count]


def centred_squares(row: Any) -> float:
    wide = np.asarray(row, np.float64)
    return float(np.square(wide - wide.mean()).sum())


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Rows, Rows]:
    """Logits of both sides, [n, vocab_size]: any spread, any drift, ties, shifts that change no probability."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, vocab_size = draw(st.integers(1, 5)), draw(st.sampled_from((2, 9, 11, 63, 64, 65, 700, 3000)))
    spread, noise = draw(st.sampled_from((0.0, 0.1, 3.0, 50.0))), draw(st.sampled_from((0.0, 1e-3, 1.0, 30.0)))
    reference = (generator.standard_normal((rows, vocab_size)) * spread).astype(np.float32)
    if draw(st.booleans()):
        # whole numbers: many ties
        reference = np.round(reference)
    test = reference + (generator.standard_normal((rows, vocab_size)) * noise).astype(np.float32)
    return reference, test + np.float32(draw(st.sampled_from((0.0, -7.0, 1000.0))))


def document(length: int, *, vocab_size: int, slice: str = "code", name: str = "one", seed: int = 0) -> Document:
    tokens = np.random.default_rng(seed).integers(0, vocab_size, length)
    return Document(slice=slice, name=name, token_ids=tuple(tokens.tolist()))
