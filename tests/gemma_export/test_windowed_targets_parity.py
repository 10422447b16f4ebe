"""Gemma 2 and 3 on the other targets against transformers: windows and softcaps whatever the graph is made of."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import tolerances
from decoders import Graph, reference_choices, reference_logits
from windowed_decoders import WINDOWED_CONFIGS, windowed_reference, write_windowed_checkpoint

from gemma_export.artifact import verify_folder
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, export
from gemma_export.planning import plan_export
from gemma_export.progress import format_bytes
from gemma_runtime import Gemma, read_manifest
from gemma_runtime.tokenizer import load_tokenizer
from gemma_validation import measure_drift

# six of the longest window
_LENGTH = 6 * 16
# every configuration where attention is built of parts, and both families with standard operators and as functions
_CASES = [
    *(("directml", name) for name in WINDOWED_CONFIGS),
    ("portable", "gemma2"),
    ("portable", "gemma3 nested"),
    ("portable functions", "gemma2 types"),
    ("portable functions", "gemma3 nested"),
]


class Reference:
    """A reference model, its checkpoint, and its logits of two rows of tokens."""

    def __init__(self, name: str, root: Path) -> None:
        config = WINDOWED_CONFIGS[name]
        self.model = windowed_reference(config)
        self.checkpoint = write_windowed_checkpoint(self.model, root, config, BUILTIN_DIRECTORY)
        self.ids = np.random.default_rng(1).integers(108, 3072, (2, _LENGTH))
        self.expected = reference_logits(self.model, self.ids)


class Exported:
    """One reference and a folder of one target, in one precision."""

    def __init__(self, reference: Reference, folder: Path, target: str, precision: str = "fp32") -> None:
        name, _, functions = target.partition(" ")
        request = ExportRequest(
            checkpoint=reference.checkpoint,
            target=name,
            keep_functions=bool(functions),
            precision=precision,
            output=folder,
        )
        export(request)
        self.folder, self.manifest, self.model = folder, read_manifest(folder), reference.model
        self.ids, self.expected = reference.ids, reference.expected

    @functools.cache  # noqa: B019 (as long as the module's tests)
    def graph(self, role: str) -> Graph:
        return Graph(self.folder / self.manifest.graph(role).file)

    def close(self, found: np.ndarray, expected: np.ndarray) -> None:
        assert np.isfinite(found).all()
        assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * self.expected.std()


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    root = tmp_path_factory.mktemp("references")
    return {name: Reference(name, root / name.replace(" ", "_")) for name in WINDOWED_CONFIGS}


@pytest.fixture(scope="module", params=_CASES, ids="-".join)
def exported(
    request: pytest.FixtureRequest, references: dict[str, Reference], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    target, name = request.param
    return Exported(references[name], tmp_path_factory.mktemp("targets") / "folder", target)


def test_all_positions(exported: Exported) -> None:
    found, _ = exported.graph("all").step(exported.ids, np.ones_like(exported.ids))
    exported.close(found, exported.expected)
    assert measure_drift(exported.expected, found).mean_kl <= tolerances.FP32_MEAN_KL


def test_greedy_tokens_are_identical(exported: Exported) -> None:
    prompt = exported.ids[:1, :8]
    tokens = exported.graph("main").greedy(prompt, 64)
    assert tokens == reference_choices(exported.model, prompt, tokens)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_then_decode(exported: Exported, side: str) -> None:
    """Both rows outgrow their windows while they decode; the shorter one begins inside."""
    lengths, width, steps = (41, 7), 44, 20
    ids, mask = np.zeros((2, width), np.int64), np.zeros((2, width), np.int64)
    for row, length in enumerate(lengths):
        columns = slice(width - length, None) if side == "left" else slice(0, length)
        ids[row, columns], mask[row, columns] = exported.ids[row, :length], 1
    everything, main = exported.graph("all"), exported.graph("main")
    found, past = everything.step(ids, mask)
    last, _ = main.step(ids, mask)
    for row, length in enumerate(lengths):
        exported.close(found[row][mask[row] == 1], exported.expected[row, :length])
        exported.close(last[row, 0], exported.expected[row, length - 1])
    for step in range(steps):
        mask = np.concatenate((mask, np.ones((2, 1), np.int64)), axis=1)
        tokens = np.array([[exported.ids[row, length + step]] for row, length in enumerate(lengths)])
        logits, past = main.step(tokens, mask, past)
        for row, length in enumerate(lengths):
            exported.close(logits[row, 0], exported.expected[row, length + step])


def test_chunks_where_the_manifest_allows_them(exported: Exported) -> None:
    if exported.manifest.graph("all").chunks == "none":
        assert exported.manifest.target == "directml"
        return
    exported.close(exported.graph("all").chunks(exported.ids, 7), exported.expected)


def test_row_of_padding_only_stays_finite(exported: Exported) -> None:
    mask = np.ones((2, 20), np.int64)
    mask[1] = 0
    found, past = exported.graph("all").step(exported.ids[:, :20], mask)
    exported.close(found[0], exported.expected[0, :20])
    assert np.isfinite(found).all()
    # its first token comes later
    mask = np.concatenate((mask, np.ones((2, 1), np.int64)), axis=1)
    tokens = np.array([[exported.ids[0, 20]], [exported.ids[1, 0]]])
    logits, _ = exported.graph("main").step(tokens, mask, past)
    exported.close(logits[:, 0], np.stack((exported.expected[0, 20], exported.expected[1, 0])))


def test_the_folder_verifies_and_the_runtime_continues_past_the_window(exported: Exported) -> None:
    """The runtime binds one buffer as past and present where rows are compacted."""
    assert not verify_folder(exported.folder).extra_files
    text = "def read(path):"
    prompt = np.array([load_tokenizer(exported.folder).encode(text)])
    tokens = list(Gemma(exported.folder).generate(text, max_new_tokens=24).token_ids)
    assert len(tokens) >= 20
    assert tokens == reference_choices(exported.model, prompt, tokens)


@pytest.mark.parametrize(
    ("target", "name"), [("directml", "gemma2 types"), ("directml", "gemma3 nested"), ("portable", "gemma3 nested")]
)
def test_float16(target: str, name: str, references: dict[str, Reference], tmp_path: Path) -> None:
    found = Exported(references[name], tmp_path / "folder", target, precision="fp16")
    logits, _ = found.graph("all").step(found.ids, np.ones_like(found.ids))
    drift = measure_drift(found.expected, logits)
    assert drift.mean_kl <= tolerances.FP16_MEAN_KL_LARGE_WEIGHTS
    assert logits.std() == pytest.approx(found.expected.std(), rel=1e-2)


@pytest.mark.parametrize(
    ("precision", "context", "tables"), [("fp32", None, "268 MB"), ("fp16", None, "134 MB"), ("fp32", 8192, "16.8 MB")]
)
def test_a_plan_says_what_the_tables_of_functions_take(precision: str, context: int | None, tables: str) -> None:
    """Of both rotary embeddings; other graphs compute their rows."""
    asked = ExportRequest(
        variant="gemma3-4b", synthetic_seed=0, target="portable", precision=precision, context=context
    )
    computed, stored = plan_export(asked), plan_export(dataclasses.replace(asked, keep_functions=True))
    assert not any("rotary" in warning for warning in computed.warnings)
    (said,) = [warning for warning in stored.warnings if "rotary" in warning]
    assert said == (
        f"--keep-functions stores rotary tables of {context or 131072} positions, {tables}, which other graphs "
        "compute; --context N stores fewer"
    )
    sizes = [next(file.nbytes for file in plan.files if file.path.endswith("_data")) for plan in (computed, stored)]
    assert format_bytes(sizes[1] - sizes[0]) == tables
