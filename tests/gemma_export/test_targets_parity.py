"""Folders of the other targets against transformers: the same numbers whatever the graph is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tolerances
from decoders import CONFIGS, Graph, reference_choices, reference_logits, reference_model, write_checkpoint

from gemma_export.artifact import verify_folder
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, export
from gemma_runtime import read_manifest
from gemma_validation import measure_drift

_LENGTH = 40
_CONFIG = "odd rotary"


class Exported:
    """One reference and a folder of one target, in one precision."""

    def __init__(self, root: Path, target: str, *, keep_functions: bool = False, precision: str = "fp32") -> None:
        self.model = reference_model(CONFIGS[_CONFIG])
        checkpoint = write_checkpoint(self.model, root / "checkpoint", CONFIGS[_CONFIG], BUILTIN_DIRECTORY)
        self.folder = root / "folder"
        export(
            ExportRequest(
                checkpoint=checkpoint,
                target=target,
                keep_functions=keep_functions,
                precision=precision,
                output=self.folder,
            )
        )
        self.manifest = read_manifest(self.folder)
        self.ids = np.random.default_rng(1).integers(108, 3072, (2, _LENGTH))
        self.expected = reference_logits(self.model, self.ids)

    def graph(self, role: str) -> Graph:
        return Graph(self.folder / self.manifest.graph(role).file)

    def close(self, found: np.ndarray, expected: np.ndarray) -> None:
        assert np.isfinite(found).all()
        assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * self.expected.std()


@pytest.fixture(scope="module", params=["portable", "portable functions", "directml"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    target, _, functions = request.param.partition(" ")
    return Exported(tmp_path_factory.mktemp("targets"), target, keep_functions=bool(functions))


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
    lengths, width = (21, 9), 24
    ids, mask = np.zeros((2, width), np.int64), np.zeros((2, width), np.int64)
    for row, length in enumerate(lengths):
        columns = slice(width - length, None) if side == "left" else slice(0, length)
        ids[row, columns], mask[row, columns] = exported.ids[row, :length], 1
    everything, main, last8 = (exported.graph(role) for role in ("all", "main", "last8"))
    found, past = everything.step(ids, mask)
    last, _ = main.step(ids, mask)
    few, _ = last8.step(ids, mask)
    for row, length in enumerate(lengths):
        expected = exported.expected[row]
        exported.close(found[row][mask[row] == 1], expected[:length])
        exported.close(last[row, 0], expected[length - 1])
        exported.close(few[row], expected[length - 8 : length])
    for step in range(3):
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


def test_batched_chunks_with_different_lengths(exported: Exported) -> None:
    if exported.manifest.graph("all").chunks != "batched":
        assert exported.manifest.target == "directml"
        return
    lengths = (11, 4)
    mask = np.arange(12)[None] < np.array(lengths)[:, None]
    ids = np.where(mask, exported.ids[:, :12], 0)
    graph, past, outputs = exported.graph("all"), None, []
    for start in range(0, 12, 4):
        logits, past = graph.step(ids[:, start : start + 4], mask[:, : start + 4], past)
        outputs.append(logits)
    found = np.concatenate(outputs, axis=1)
    for row, length in enumerate(lengths):
        exported.close(found[row, :length], exported.expected[row, :length])


def test_row_of_padding_only_stays_finite(exported: Exported) -> None:
    mask = np.ones((2, 6), np.int64)
    mask[1] = 0
    found, _ = exported.graph("all").step(exported.ids[:, :6], mask)
    exported.close(found[0], exported.expected[0, :6])
    assert np.isfinite(found).all()


def test_the_folder_verifies(exported: Exported) -> None:
    assert not verify_folder(exported.folder).extra_files


@pytest.mark.parametrize("target", ["portable", "directml"])
def test_float16(target: str, tmp_path: Path) -> None:
    found = Exported(tmp_path, target, precision="fp16")
    logits, _ = found.graph("all").step(found.ids, np.ones_like(found.ids))
    drift = measure_drift(found.expected, logits)
    assert drift.mean_kl <= tolerances.FP16_MEAN_KL_LARGE_WEIGHTS
    assert logits.std() == pytest.approx(found.expected.std(), rel=1e-2)
