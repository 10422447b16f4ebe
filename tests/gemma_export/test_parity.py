"""The exported folder against transformers: the reference computes, onnxruntime must agree."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
import torch
from decoders import (
    CONFIGS,
    Graph,
    builtin_reference,
    reference_choices,
    reference_logits,
    reference_model,
    write_checkpoint,
)
from windowed_decoders import WINDOWED_CONFIGS, windowed_reference

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, export
from gemma_runtime import Gemma, read_manifest
from gemma_runtime.tokenizer import load_tokenizer
from gemma_validation import measure_drift, widen_bfloat16

# of random texts: 2.5 to 5 windows of the configurations that have one
_LENGTH = 40


class Exported:
    """A reference and its fp32 export."""

    def __init__(self, name: str, root: Path) -> None:
        if name == "tiny":
            self.model = builtin_reference()
            export(ExportRequest(variant="tiny", output=root / "folder"))
        else:
            windowed = WINDOWED_CONFIGS.get(name)
            config = windowed or CONFIGS[name]
            self.model = windowed_reference(config) if windowed else reference_model(config)
            # in shards of one to three tensors
            checkpoint = root / "checkpoint"
            write_checkpoint(self.model, checkpoint, config, BUILTIN_DIRECTORY, max_shard_size="40KB")
            export(ExportRequest(checkpoint=checkpoint, output=root / "folder"))
        self.all = Graph(root / "folder/onnx/model_all.onnx")
        self.last = Graph(root / "folder/onnx/model.onnx")
        self.last8 = Graph(root / "folder/onnx/model_last8.onnx")
        self.batched = Graph(root / "folder/onnx/model_batched.onnx")
        generator = np.random.default_rng(1)
        self.ids = generator.integers(108, self.model.config.vocab_size, (2, _LENGTH))
        self.expected = reference_logits(self.model, self.ids)

    def close(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Asserts the project's fp32 tolerance."""
        assert np.isfinite(found).all()
        assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * self.expected.std()


@pytest.fixture(scope="module", params=["tiny", *sorted(CONFIGS), *sorted(WINDOWED_CONFIGS)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(request.param, tmp_path_factory.mktemp("parity"))


def test_all_positions(exported: Exported) -> None:
    found, _ = exported.all.step(exported.ids, np.ones_like(exported.ids))
    exported.close(found, exported.expected)
    assert measure_drift(exported.expected, found).mean_kl <= tolerances.FP32_MEAN_KL


def test_greedy_tokens_are_identical(exported: Exported) -> None:
    prompt = exported.ids[:1, :8]
    tokens = exported.last.greedy(prompt, 128)
    assert len(tokens) == 128
    assert tokens == reference_choices(exported.model, prompt, tokens)


@pytest.mark.parametrize("size", [1, 7])
def test_chunked_prefill(exported: Exported, size: int) -> None:
    # several rows in chunks are the batched twin's
    for ids, expected in zip(exported.ids, exported.expected, strict=True):
        exported.close(exported.all.chunks(ids[None], size)[0], expected)


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_batched_chunks_with_different_lengths(exported: Exported, size: int) -> None:
    """A batch whose rows end in different chunks: a row may have no token at all in a later chunk."""
    lengths = (11, 4)
    mask = np.arange(12)[None] < np.array(lengths)[:, None]
    ids = np.where(mask, exported.ids[:, :12], 0)
    past = None
    for start in range(0, 12, size):
        logits, past = exported.batched.step(ids[:, start : start + size], mask[:, : start + size], past)
        for row, length in enumerate(lengths):
            if length > start:
                exported.close(logits[row, 0], exported.expected[row, min(start + size, length) - 1])


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sources_in_one_file(dtype: torch.dtype, tmp_path: Path) -> None:
    config = CONFIGS["untied"]
    model = reference_model(config)
    # the stored values alone are rounded: .to() on the whole model would round the reference's rotary buffer too
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in model.state_dict().items()})
    stored = copy.deepcopy(model).to(dtype)
    write_checkpoint(stored, tmp_path / "checkpoint", config, BUILTIN_DIRECTORY)
    assert not list((tmp_path / "checkpoint").glob("*.index.json"))
    export(ExportRequest(checkpoint=tmp_path / "checkpoint", output=tmp_path / "folder"))
    ids = np.random.default_rng(2).integers(4, 3072, (1, 16))
    expected = reference_logits(model, ids)
    found, _ = Graph(tmp_path / "folder/onnx/model_all.onnx").step(ids, np.ones_like(ids))
    assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * expected.std()


def test_float16_drift_on_the_builtin_model(tiny_fp16: Path) -> None:
    """On text, not on random ids: the README's figure comes from the same comparison over more of it."""
    tokenizer = load_tokenizer(tiny_fp16)
    ids = np.array([tokenizer.encode(Path(argparse.__file__).read_text(encoding="utf-8")[:4000])[:512]])
    expected = reference_logits(builtin_reference(), ids)
    found, _ = Graph(tiny_fp16 / "onnx/model_fp16_all.onnx").step(ids, np.ones_like(ids))
    drift = measure_drift(expected, found)
    assert drift.mean_kl <= tolerances.FP16_MEAN_KL
    assert drift.top1_agreement >= tolerances.FP16_TOP1


def test_bfloat16_weights_on_the_builtin_model(tmp_path: Path) -> None:
    """The CPU has no bfloat16 kernels: the exported graph with its rounded weights, computed in float32."""
    export(ExportRequest(variant="tiny", precision="bf16", output=tmp_path / "folder"))
    wide = widen_bfloat16(ir.load(tmp_path / "folder/onnx/model_bf16_all.onnx"))
    graph = Graph(ir.to_proto(wide).SerializeToString())
    tokenizer = load_tokenizer(tmp_path / "folder")
    ids = np.array([tokenizer.encode(Path(argparse.__file__).read_text(encoding="utf-8")[:4000])[:512]])
    found, _ = graph.step(ids, np.ones_like(ids))
    drift = measure_drift(reference_logits(builtin_reference(), ids), found)
    assert 0 < drift.mean_kl <= tolerances.BF16_WEIGHTS_MEAN_KL
    assert drift.top1_agreement >= tolerances.BF16_WEIGHTS_TOP1


def test_context_sizes_the_rotary_tables(tmp_path: Path) -> None:
    export(ExportRequest(variant="tiny", context=48, output=tmp_path / "short"))
    export(ExportRequest(variant="tiny", context=9000, output=tmp_path / "long"))
    ids = np.random.default_rng(3).integers(108, 3072, (1, 48))
    expected = reference_logits(builtin_reference(), ids)
    for folder in ("short", "long"):
        found, _ = Graph(tmp_path / folder / "onnx/model_all.onnx").step(ids, np.ones_like(ids))
        assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * expected.std()
        limit = {"short": 48, "long": 9000}[folder]
        assert read_manifest(tmp_path / folder).context_length == limit
        assert json.loads((tmp_path / folder / "config.json").read_text())["max_position_embeddings"] == limit


@pytest.mark.parametrize(("logits", "positions"), [("all", 20), ("3", 3), ("50", 20)])
def test_logits_option_shapes_the_main_graph(logits: str, positions: int, tmp_path: Path) -> None:
    export(ExportRequest(variant="tiny", logits=logits, output=tmp_path / "folder"))
    ids = np.random.default_rng(4).integers(108, 3072, (1, 20))
    expected = reference_logits(builtin_reference(), ids)[:, -positions:]
    found, _ = Graph(tmp_path / "folder/onnx/model.onnx").step(ids, np.ones_like(ids))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * expected.std()
    assert read_manifest(tmp_path / "folder").graph("main").logits == ("all" if logits == "all" else int(logits))
    # a generation loop reads the last of them
    tokens = Gemma(tmp_path / "folder").generate("def f(x):", max_new_tokens=4).token_ids
    export(ExportRequest(variant="tiny", output=tmp_path / "last"))
    assert tokens == Gemma(tmp_path / "last").generate("def f(x):", max_new_tokens=4).token_ids
