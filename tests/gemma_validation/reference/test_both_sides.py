"""What needs reference and export at once: another folder as reference, greedy text, exchanged caches, the choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import Graph, builtin_reference, reference_logits
from local_references import layers_of, parting
from reference_exports import exported

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.precision import WeightOptions
from gemma_runtime import read_manifest
from gemma_validation.artifact import ArtifactRunner, Cache, Step
from gemma_validation.documents import Document
from gemma_validation.errors import ProviderUnavailableError
from gemma_validation.layered import LayeredReference
from gemma_validation.metrics import NotFinite
from gemma_validation.reference import (
    FolderReference,
    ReferenceSource,
    TransformersReference,
    ask_injection,
    choose_reference_provider,
    find_reference,
    open_reference,
    open_source,
    runs_whole,
    select,
)
from gemma_validation.reference.greedy import first_divergence
from gemma_validation.reference.inject import INTO_ARTIFACT, INTO_REFERENCE
from gemma_validation.texts import folder_documents


def opened(folder: Path, given: Path | None = None) -> ReferenceSource:
    manifest = read_manifest(folder)
    return open_source(find_reference(folder, manifest, given), folder, manifest)


def runner_of(folder: Path, **options: Any) -> ArtifactRunner:
    return ArtifactRunner(folder, read_manifest(folder), threads=1, **options)


@pytest.fixture(scope="module")
def documents(tiny_fp32: Path) -> tuple[Document, ...]:
    return folder_documents(tiny_fp32, read_manifest(tiny_fp32), suite="quick")


@pytest.fixture(scope="module")
def reference(tiny_fp32: Path) -> Iterator[ReferenceSource]:
    source = opened(tiny_fp32)
    yield source
    source.close()


@pytest.fixture(scope="module")
def runner(tiny_fp32: Path) -> Iterator[ArtifactRunner]:
    with runner_of(tiny_fp32) as found:
        yield found


# another folder


def test_another_folder_gives_its_own_logits(
    tiny_fp32: Path, tiny_fp16: Path, documents: tuple[Document, ...], runner: ArtifactRunner
) -> None:
    source = opened(tiny_fp16, tiny_fp32)
    assert isinstance(source, FolderReference)
    assert (source.about.kind, source.about.name, source.about.dtype) == ("folder", "fp32", "fp32")
    assert "onnxruntime" in source.about.versions
    assert source.vocab_size == 3072
    assert source.noise() is None
    source.prepare(documents)
    (long,) = [index for index, document in enumerate(documents) if document.slice == "long"]
    ids = documents[long].token_ids
    whole = np.concatenate([block for _, block in runner.logits(ids)])
    # across the blocks that are read at a time, and back again
    for first, last in ((0, 10), (10, 250), (250, 260), (260, len(ids)), (5, 8)):
        assert np.abs(source.logits(long, first, last) - whole[first:last]).max() < 1e-4
    other = np.concatenate([block for _, block in runner.logits(documents[0].token_ids)])
    assert np.abs(source.logits(0, 3, 9) - other[3:9]).max() < 1e-4
    source.close()


def test_where_another_folder_runs(tiny_fp32: Path) -> None:
    """Where the export runs, if it can; else on the first that it runs on, and reports say where."""
    for providers, provider, wanted, chosen in (
        (("cpu", "cuda"), "cpu", None, "cpu"),
        (("cpu", "cuda"), "cuda", None, "cuda"),
        (("cpu",), "cuda", None, "cpu"),
        (("directml", "cpu"), "cuda", None, "directml"),
        (("cpu", "cuda"), "cuda", "cpu", "cpu"),
        (("cpu", "cuda"), "cpu", "cuda", "cuda"),
    ):
        assert choose_reference_provider("x", providers, provider, wanted) == chosen
    with pytest.raises(ProviderUnavailableError, match="the reference x runs on cpu, cuda, not on directml") as caught:
        choose_reference_provider("x", ("cpu", "cuda"), "cpu", "directml")
    assert (caught.value.exit_code, caught.value.hint) == (8, "Choose --reference-provider cpu, or leave it out.")
    manifest = read_manifest(tiny_fp32)
    found = find_reference(tiny_fp32, manifest, tiny_fp32, itself=True)
    for provider, name in (("cuda", "fp32 on cpu"), ("cpu", "fp32")):
        source = open_source(found, tiny_fp32, manifest, provider=provider)
        assert (source.about.kind, source.about.name) == ("folder", name)
        source.close()


# greedy text


def test_the_same_text_has_no_divergence(
    reference: ReferenceSource, runner: ArtifactRunner, documents: tuple[Document, ...]
) -> None:
    found = parting(reference, runner, documents[:2], 12)
    assert [(entry.document, entry.slice, entry.tokens) for entry in found] == [
        ("python", "code", 12),
        ("c", "code", 12),
    ]
    assert all(entry.first is None and entry.margin is None for entry in found)


class Changed:
    """A reference that would write another token at one place behind one prompt."""

    def __init__(self, source: ReferenceSource, prompt: int, place: int) -> None:
        self.source, self.row = source, prompt - 1 + place
        self.prepare = source.prepare

    def logits(self, document: int, first: int, last: int) -> np.ndarray:
        rows = self.source.logits(document, first, last).copy()
        row = rows[self.row - first]
        row[(int(row.argmax()) + 1) % len(row)] = row.max() + np.float32(0.75)
        return rows


def test_the_first_divergence_and_its_margin(
    reference: ReferenceSource, runner: ArtifactRunner, documents: tuple[Document, ...]
) -> None:
    prompt = min(128, len(documents[0].token_ids) // 2)
    changed: Any = Changed(reference, prompt, 5)
    (found,) = parting(changed, runner, documents[:1], 8)
    assert (found.first, found.margin, found.tokens) == (5, pytest.approx(0.75, abs=1e-5), 8)


def test_the_first_of_several_differences() -> None:
    rows = np.array([[0, 3, 1], [5, 0, 4.75], [0, 0, 9], [9, 0, 0]], np.float32)
    assert first_divergence(rows, [1, 2, 0, 0]) == (1, 0.25)
    assert first_divergence(rows, [1, 0, 2, 0]) == (None, None)
    assert first_divergence(rows[:0], []) == (None, None)
    # not even where it lies behind the first difference
    with pytest.raises(NotFinite, match="the reference's logits at position 3 of greedy text"):
        first_divergence(np.where(np.arange(len(rows))[:, None] == 3, np.nan, rows), [1, 2, 0, 0])


@dataclasses.dataclass(frozen=True)
class Parted:
    """Greedy text that both sides wrote by themselves behind one prompt."""

    document: Document
    first: int | None
    margin: float | None


_STEPS = 10


@pytest.fixture(scope="module")
def parted(tiny_int4: Path, documents: tuple[Document, ...]) -> list[Parted]:
    """transformers without a cache, and the int4 graph through onnxruntime alone."""
    model, graph, found = builtin_reference(), Graph(tiny_int4 / "onnx/model_q4.onnx"), []
    for document in documents[:3]:
        prompt = np.array([document.token_ids[: min(128, len(document.token_ids) // 2)]])
        written, ids, first, margin = graph.greedy(prompt, _STEPS), prompt, None, None
        for index in range(_STEPS):
            row = reference_logits(model, ids)[0, -1]
            second, best = np.sort(row)[-2:]
            if int(row.argmax()) != written[index]:
                first, margin = index, float(best - second)
                break
            ids = np.append(ids, [[int(row.argmax())]], axis=1)
        found.append(Parted(document, first, margin))
    assert any(entry.first for entry in found), "nothing to find"
    return found


@pytest.mark.parametrize("kind", ["whole", "layers", "folder"])
def test_where_free_running_texts_part(
    kind: str, tiny_int4: Path, tiny_fp32: Path, parted: list[Parted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass over the export's text finds what writing by itself would, whatever the reference is."""
    if kind == "layers":
        monkeypatch.setattr(select, "_WHOLE_BYTES", 0)
    source = opened(tiny_int4, tiny_fp32 if kind == "folder" else None)
    assert isinstance(
        source, {"whole": TransformersReference, "layers": LayeredReference, "folder": FolderReference}[kind]
    )
    found = parting(source, runner_of(tiny_int4), [entry.document for entry in parted], _STEPS)
    source.close()
    for entry, wanted in zip(found, parted, strict=True):
        assert (entry.document, entry.tokens, entry.first) == (wanted.document.name, _STEPS, wanted.first)
        assert entry.margin == (None if wanted.margin is None else pytest.approx(wanted.margin, abs=1e-3))


def test_text_ends_with_the_context(local: Any) -> None:
    source = opened(local.folder)
    document = Document(slice="random", name="x", token_ids=tuple(range(3, 63)))
    (found,) = parting(source, runner_of(local.folder), [document], 100)
    # 64 tokens of context, 30 of the prompt
    assert found.tokens == 34


# exchanged caches


@pytest.fixture(scope="module")
def layers(tiny_fp32: Path) -> Iterator[ReferenceSource]:
    """The same reference as a large model has it."""
    source = layers_of(BUILTIN_DIRECTORY)
    yield source
    source.close()


@pytest.mark.parametrize("kind", ["reference", "layers"])
def test_caches_can_be_exchanged(
    kind: str, runner: ArtifactRunner, documents: tuple[Document, ...], request: pytest.FixtureRequest
) -> None:
    checks = ask_injection(request.getfixturevalue(kind), runner, documents[0])()
    assert [check.name for check in checks] == [INTO_ARTIFACT, INTO_REFERENCE]
    for check in checks:
        assert (check.group, check.outcome, check.bound) == ("invariance", "passed", 1e-4)
        assert check.measured is not None
        assert check.measured < 1e-5


@pytest.mark.parametrize("changes", [{"precision": "fp16"}, {"weights": WeightOptions(scheme="int4")}])
def test_other_precisions_pass_within_their_own_rounding(local: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    export = exported(tmp_path, local.checkpoint, **changes)
    (document, *_) = folder_documents(export.folder, export.manifest, suite="quick")
    source = opened(export.folder, local.checkpoint)
    checks = ask_injection(source, runner_of(export.folder), document)()
    assert [check.outcome for check in checks] == ["passed", "passed"]
    assert all(check.measured is not None and check.measured > 1e-6 for check in checks)


class Altered:
    """A runner whose cache is wrong in steps behind a cache, and right in one shot."""

    def __init__(self, runner: ArtifactRunner, change: str) -> None:
        self.runner, self.change = runner, change
        self.graph, self.manifest = runner.graph, runner.manifest

    def step(self, input_ids: Any, attention_mask: Any, past: Cache | None = None) -> Step:
        step = self.runner.step(input_ids, attention_mask, self._wrong(past))
        return dataclasses.replace(step, present=self._wrong(step.present) or ())

    def _wrong(self, cache: Cache | None) -> Cache | None:
        if cache is None:
            return None
        if self.change == "keys and values exchanged":
            return tuple(cache[index ^ 1] for index in range(len(cache)))
        if self.change == "values one token off":
            # both together would be the same cache: attention does not know the order of its keys
            return tuple(np.ascontiguousarray(np.roll(part, index % 2, axis=2)) for index, part in enumerate(cache))
        return tuple(np.full_like(part, np.nan) for part in cache)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("reference", "keys and values exchanged"),
        ("reference", "values one token off"),
        ("reference", "not finite"),
        ("layers", "keys and values exchanged"),
        ("layers", "values one token off"),
        ("layers", "not finite"),
    ],
)
def test_a_wrong_cache_fails(
    kind: str, change: str, runner: ArtifactRunner, documents: tuple[Document, ...], request: pytest.FixtureRequest
) -> None:
    wrong: Any = Altered(runner, change)
    checks = ask_injection(request.getfixturevalue(kind), wrong, documents[0])()
    assert [check.outcome for check in checks] == ["failed", "failed"]
    for check in checks:
        assert check.bound is not None
        assert check.measured is None if change == "not finite" else (check.measured or 0) > 100 * check.bound


def test_exchanges_that_cannot_be(
    tiny_fp32: Path, tiny_fp16: Path, tmp_path: Path, local: Any, reference: ReferenceSource, runner: ArtifactRunner
) -> None:
    document = Document(slice="random", name="x", token_ids=(2, 5, 6, 7))
    int8 = exported(tmp_path, local.checkpoint, kv_cache="int8")
    for source, other, ids, words in (
        (
            opened(tiny_fp16, tiny_fp32),
            runner,
            document.token_ids,
            "not run: the reference shows no keys and values (folder)",
        ),
        (
            opened(int8.folder, local.checkpoint),
            runner_of(int8.folder),
            document.token_ids,
            "not run: the cache holds int8",
        ),
        (reference, runner, (2,), "not run: the document has no two tokens"),
    ):
        checks = ask_injection(source, other, dataclasses.replace(document, token_ids=ids))()
        assert [check.outcome for check in checks] == ["skipped", "skipped"]
        assert all(words in check.message for check in checks)


# which implementation


def test_small_models_run_whole_and_large_ones_layer_by_layer(
    local: Any, tiny_fp32: Path, monkeypatch: pytest.MonkeyPatch, documents: tuple[Document, ...]
) -> None:
    manifest = read_manifest(tiny_fp32)
    checkpoint = open_reference(find_reference(tiny_fp32, manifest), manifest)
    assert runs_whole(checkpoint)
    assert isinstance(opened(tiny_fp32), TransformersReference)
    monkeypatch.setattr(select, "_WHOLE_BYTES", checkpoint.float32_bytes - 1)
    assert not runs_whole(checkpoint)
    whole, layered = TransformersReference(checkpoint), opened(tiny_fp32)
    assert isinstance(layered, LayeredReference)
    assert (layered.about.name, layered.about.dtype) == ("built-in", "float32")
    for source in (whole, layered):
        source.prepare(documents[:1])
    last = len(documents[0].token_ids)
    expected, found = whole.logits(0, 0, last), layered.logits(0, 0, last)
    assert np.abs(found - expected).max() < 1e-4 * expected.std()
