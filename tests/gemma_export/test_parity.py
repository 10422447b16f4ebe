"""The exported folder against transformers: the reference computes, onnxruntime must agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tolerances
from decoders import (
    CONFIGS,
    Graph,
    mean_kl,
    reference_greedy,
    reference_logits,
    reference_model,
    write_checkpoint,
)

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, export

_LENGTH = 40


class Exported:
    """A reference and its fp32 export."""

    def __init__(self, name: str, root: Path) -> None:
        config = CONFIGS[name]
        self.model = reference_model(config)
        checkpoint = write_checkpoint(self.model, root / "checkpoint", config, BUILTIN_DIRECTORY)
        export(ExportRequest(checkpoint=checkpoint, output=root / "folder"))
        self.all = Graph(root / "folder/onnx/model_all.onnx")
        self.last = Graph(root / "folder/onnx/model.onnx")
        self.last8 = Graph(root / "folder/onnx/model_last8.onnx")
        generator = np.random.default_rng(1)
        self.ids = generator.integers(4, config["vocab_size"], (2, _LENGTH))
        self.expected = reference_logits(self.model, self.ids)

    def close(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Asserts the project's fp32 tolerance."""
        assert np.isfinite(found).all()
        assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * self.expected.std()


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(request.param, tmp_path_factory.mktemp("parity"))


def test_all_positions(exported: Exported) -> None:
    found, _ = exported.all.step(exported.ids, np.ones_like(exported.ids))
    exported.close(found, exported.expected)
    assert mean_kl(exported.expected, found) <= tolerances.FP32_MEAN_KL


def test_greedy_tokens_are_identical(exported: Exported) -> None:
    prompt = exported.ids[:1, :8]
    assert exported.last.greedy(prompt, 128) == reference_greedy(exported.model, prompt, 128)


@pytest.mark.parametrize("size", [1, 7])
def test_chunked_prefill(exported: Exported, size: int) -> None:
    exported.close(exported.all.chunks(exported.ids, size), exported.expected)


def test_batched_chunks_with_different_lengths(exported: Exported) -> None:
    """A batch whose rows end in different chunks: a row may have no token at all in a later chunk."""
    lengths = (11, 4)
    mask = np.arange(12)[None] < np.array(lengths)[:, None]
    ids = np.where(mask, exported.ids[:, :12], 0)
    past, outputs = None, []
    for start in range(0, 12, 4):
        logits, past = exported.all.step(ids[:, start : start + 4], mask[:, : start + 4], past)
        outputs.append(logits)
    found = np.concatenate(outputs, axis=1)
    for row, length in enumerate(lengths):
        exported.close(found[row, :length], exported.expected[row, :length])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_then_decode(exported: Exported, side: str) -> None:
    lengths, width, steps = (21, 9), 24, 3
    ids, mask = np.zeros((2, width), np.int64), np.zeros((2, width), np.int64)
    for row, length in enumerate(lengths):
        columns = slice(width - length, None) if side == "left" else slice(0, length)
        ids[row, columns], mask[row, columns] = exported.ids[row, :length], 1
    found, past = exported.all.step(ids, mask)
    last, _ = exported.last.step(ids, mask)
    last8, _ = exported.last8.step(ids, mask)
    for row, length in enumerate(lengths):
        expected = exported.expected[row]
        exported.close(found[row][mask[row] == 1], expected[:length])
        exported.close(last[row, 0], expected[length - 1])
        exported.close(last8[row], expected[length - 8 : length])
    for step in range(steps):
        mask = np.concatenate((mask, np.ones((2, 1), np.int64)), axis=1)
        tokens = np.array([[exported.ids[row, length + step]] for row, length in enumerate(lengths)])
        logits, past = exported.last.step(tokens, mask, past)
        for row, length in enumerate(lengths):
            exported.close(logits[row, 0], exported.expected[row, length + step])


def test_row_of_padding_only_stays_finite(exported: Exported) -> None:
    mask = np.ones((2, 6), np.int64)
    mask[1] = 0
    found, _ = exported.all.step(exported.ids[:, :6], mask)
    assert np.isfinite(found).all()
    exported.close(found[0], exported.expected[0, :6])


def test_last8_of_a_short_sequence(exported: Exported) -> None:
    found, _ = exported.last8.step(exported.ids[:, :3], np.ones((2, 3)))
    assert found.shape[1] == 3
    exported.close(found, exported.expected[:, :3])
