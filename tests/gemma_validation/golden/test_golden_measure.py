"""What a golden pack says of an export, beside what the whole vocabulary says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import drift_formulas as formulas
import numpy as np
import numpy.typing as npt
import pytest
from golden_packs import ArraySource, identity
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_validation.documents import Document
from gemma_validation.errors import MismatchError, ReferenceNotFiniteError
from gemma_validation.golden import GoldenReference, make_golden, measure_golden
from gemma_validation.metrics import TAU, DriftMeter, NotFinite

_VOCABULARY = 3000
Logits = npt.NDArray[np.float32]


def _decode(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


class Runner:
    """The test's logits in chunks, as far as is asked: nobody needs those of a document's last token."""

    def __init__(self, documents: Sequence[Document], logits: Sequence[Logits], *, rows: int = 7) -> None:
        self._logits = {document.token_ids: array for document, array in zip(documents, logits, strict=True)}
        self._rows = rows

    def __call__(self, token_ids: Sequence[int]) -> Iterator[tuple[int, Logits]]:
        beginning = tuple(token_ids)
        [found] = [array for ids, array in self._logits.items() if ids[: len(beginning)] == beginning != ids]
        found = found[: len(token_ids)]
        for start in range(0, len(found), self._rows):
            yield start, found[start : start + self._rows]


def _sides(
    lengths: Sequence[int], *, seed: int = 0, vocab_size: int = _VOCABULARY, noise: float = 1.0, spread: float = 3.0
) -> tuple[list[Document], list[Logits], list[Logits]]:
    generator = np.random.default_rng(seed)
    documents = [
        formulas.document(length, vocab_size=vocab_size, slice=slice, name=f"{slice} {index}", seed=index)
        for index, (length, slice) in enumerate(zip(lengths, ("code", "prose", "code", "chat"), strict=False))
    ]
    reference = [(generator.standard_normal((length, vocab_size)) * spread).astype(np.float32) for length in lengths]
    test = [side + (generator.standard_normal(side.shape) * noise).astype(np.float32) for side in reference]
    return documents, reference, test


def _full(documents: Sequence[Document], reference: Sequence[Logits], test: Sequence[Logits]) -> DriftMeter:
    meter = DriftMeter(tau=TAU)
    for document, *sides in zip(documents, reference, test, strict=True):
        # a pack leaves the last position out: nothing follows it
        meter.add(document, 0, sides[0][:-1], sides[1][:-1])
    return meter


def test_what_is_exact_is_the_same_and_what_is_not_is_less(tmp_path: Path) -> None:
    documents, reference, test = _sides((40, 30, 20, 9))
    make_golden(tmp_path / "pack", ArraySource(reference), documents, identity(_VOCABULARY))
    pack = GoldenReference.read(tmp_path / "pack")
    found = measure_golden(pack, Runner(documents, test), tau=TAU)
    full = _full(documents, reference, test)
    # documents of one slice take turns with the others
    assert [document.name for document in pack.documents] == ["code 0", "prose 1", "chat 3", "code 2"]
    by_slice = {drift.slice: drift for drift in full.drifts()}
    for drift in found.drifts():
        expected = by_slice[drift.slice]
        assert drift.lower_bound
        for name in ("documents", "positions", "decisive_flips", "near_ties", "top1_agreement"):
            assert getattr(drift, name) == getattr(expected, name)
        for name in ("nll_reference", "nll_test", "perplexity_ratio", "probability_shift_rms", "top10_overlap"):
            assert getattr(drift, name) == pytest.approx(getattr(expected, name), rel=1e-9)
        for name in ("normalised_mse", "max_difference"):
            assert 0 < getattr(drift, name) <= getattr(expected, name)
        # the known tokens hold nearly all probability here, so the bound is close
        assert 0.5 * expected.kl.mean < drift.kl.mean <= expected.kl.mean
    assert {dataclasses.replace(flip, reference=(), test=()) for flip in found.flips(_decode)} == {
        dataclasses.replace(flip, reference=(), test=()) for flip in full.flips(_decode)
    }
    ours, theirs = found.flips(_decode)[0], full.flips(_decode)[0]
    for side in ("reference", "test"):
        pairs = zip(getattr(ours, side), getattr(theirs, side), strict=True)
        assert all(a.token_id == b.token_id and a.logprob == pytest.approx(b.logprob) for a, b in pairs)


@settings(max_examples=40, deadline=None)
@given(formulas.pairs(), st.integers(1, 300))
def test_coarse_kl_is_a_lower_bound(
    tmp_path_factory: pytest.TempPathFactory, pair: tuple[Logits, Logits], top: int
) -> None:
    """Data processing: joining cells loses divergence, and nothing else. Also where many tokens tie, and where the
    known tokens are the whole vocabulary, when the bound is the value."""
    reference, test = (np.concatenate([side, side[:1]]) for side in pair)
    vocab_size = reference.shape[1]
    documents = [formulas.document(len(reference), vocab_size=vocab_size)]
    file = tmp_path_factory.mktemp("golden") / "pack"
    make_golden(file, ArraySource([reference]), documents, identity(vocab_size), top=top)
    collected = measure_golden(GoldenReference.read(file), Runner(documents, [test]), tau=TAU)
    for row, coarse in enumerate(collected.positions()[0].kl):
        exact = formulas.kl(reference[row], test[row])
        assert 0 <= coarse <= exact * (1 + 1e-9) + 1e-11
        if top >= vocab_size:
            assert coarse == pytest.approx(exact, rel=1e-9, abs=1e-11)
    coarse, exact = collected.drifts()[0], _full(documents, [reference], [test]).drifts()[0]
    assert coarse.normalised_mse <= exact.normalised_mse * (1 + 1e-9) + 1e-15
    assert coarse.max_difference <= exact.max_difference * (1 + 1e-9)


def test_an_export_like_float32_measures_as_one(tmp_path: Path) -> None:
    """Differences of 1e-6 give a KL of 1e-12: rounding in the file would hide it."""
    documents, reference, _ = _sides((40,))
    test = [
        side + (np.random.default_rng(1).standard_normal(side.shape) * 1e-6).astype(np.float32) for side in reference
    ]
    make_golden(tmp_path / "pack", ArraySource(reference), documents, identity(_VOCABULARY))
    drift = measure_golden(GoldenReference.read(tmp_path / "pack"), Runner(documents, test), tau=TAU).drifts()[0]
    expected = _full(documents, reference, test).drifts()[0]
    assert 0.5 * expected.kl.mean < drift.kl.mean <= expected.kl.mean < 1e-11


def test_positions_are_shared_out(tmp_path: Path) -> None:
    """Short documents give what they have, the others share the rest; no more documents than make sense."""
    documents, reference, _ = _sides((400, 30, 400, 20))
    source = ArraySource(reference)
    make_golden(tmp_path / "pack", source, documents, identity(_VOCABULARY), positions=300)
    pack = GoldenReference.read(tmp_path / "pack")
    assert [(document.name, len(document.token_ids)) for document in pack.documents] == [
        ("code 0", 127),
        ("prose 1", 30),
        ("chat 3", 20),
        ("code 2", 127),
    ]
    assert sum(pack.counts) == 126 + 29 + 19 + 126 == 300
    assert source.prepared == list(pack.documents)
    make_golden(tmp_path / "pack", source, documents, identity(_VOCABULARY), positions=130)
    assert [document.name for document in GoldenReference.read(tmp_path / "pack").documents] == ["code 0", "prose 1"]


def test_positions_may_be_apart(tmp_path: Path) -> None:
    """Any positions, in chunks that end before, at and behind them."""
    documents, reference, test = _sides((40,))
    make_golden(tmp_path / "pack", ArraySource(reference), documents, identity(_VOCABULARY))
    pack = GoldenReference.read(tmp_path / "pack")
    whole = measure_golden(pack, Runner(documents, test), tau=TAU).positions()[0].kl
    chosen = [2, 6, 7, 21, 30]
    rows = type(pack.rows)(**{name: array[chosen] for name, array in vars(pack.rows).items()})
    apart = dataclasses.replace(pack, counts=(len(chosen),), rows=rows)
    for step in (1, 7, 40):
        found = measure_golden(apart, Runner(documents, test, rows=step), tau=TAU).positions()[0]
        assert (found.first, found.kl) == (2, tuple(whole[position] for position in chosen))


def test_the_runner_stops_when_every_position_is_known(tmp_path: Path) -> None:
    documents, reference, test = _sides((40,))
    make_golden(tmp_path / "pack", ArraySource(reference), documents, identity(_VOCABULARY))

    def first_rows_only(token_ids: Sequence[int]) -> Iterator[tuple[int, Logits]]:
        yield 0, test[0][:39]
        raise AssertionError("computed for nothing")

    assert measure_golden(GoldenReference.read(tmp_path / "pack"), first_rows_only, tau=TAU).drifts()[0].positions == 39


def test_refusals(tmp_path: Path) -> None:
    documents, reference, test = _sides((12,))
    make_golden(tmp_path / "pack", ArraySource(reference), documents, identity(_VOCABULARY))
    pack = GoldenReference.read(tmp_path / "pack")
    with pytest.raises(MismatchError, match="the export has 2999 logits, the golden pack is of 3000"):
        measure_golden(pack, Runner(documents, [test[0][:, :-1]]), tau=TAU)
    with pytest.raises(ValueError, match="ended before position 4"):
        measure_golden(pack, Runner(documents, [test[0][:4]]), tau=TAU)
    test[0][3, 5] = np.nan
    with pytest.raises(NotFinite, match="the test's logits at position 3 of code 0"):
        measure_golden(pack, Runner(documents, test), tau=TAU)
    reference[0][2, 5] = np.inf
    with pytest.raises(ReferenceNotFiniteError, match="the reference's logits at position 2 of code 0") as caught:
        make_golden(tmp_path / "other", ArraySource(reference), documents, identity(_VOCABULARY))
    assert caught.value.exit_code == 3
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="no document has a token to predict"):
        make_golden(tmp_path / "other", ArraySource([]), [], identity(_VOCABULARY))
    with pytest.raises(ValueError, match=r"expected logits \[11, 7\]"):
        make_golden(
            tmp_path / "other",
            ArraySource(reference),
            [dataclasses.replace(documents[0], token_ids=(1,) * 12)],
            identity(7),
        )
