"""A folder's graphs with any feeds: parts, caches, taps, in-place buffers, and what goes wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from folders import altered, rewrite_manifest
from tolerances import FP32_LOGITS

from gemma_runtime.manifest import read_manifest
from gemma_validation.artifact import ArtifactRunner
from gemma_validation.errors import (
    FolderUnreadableError,
    MismatchError,
    ProviderUnavailableError,
    ValidationUsageError,
)

_IDS = [2, *range(100, 139)]


def _open(folder: Path, **options: object) -> ArtifactRunner:
    return ArtifactRunner(folder, read_manifest(folder), threads=1, **options)  # type: ignore[arg-type]


def _ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.int64)


@pytest.mark.parametrize("folder", ["tiny_fp32", "tiny_fp16"])
def test_parts_are_the_whole(folder: str, request: pytest.FixtureRequest) -> None:
    with _open(request.getfixturevalue(folder)) as runner:
        whole = runner.step(np.array([_IDS]), _ones(1, 40)).logits[0]
        parts = list(runner.logits(_IDS, rows=16))
    assert [first for first, _ in parts] == [0, 16, 32]
    found = np.concatenate([logits for _, logits in parts])
    assert found.shape == (40, 3072)
    assert found.dtype == np.float32
    bound = FP32_LOGITS if folder == "tiny_fp32" else 0.02
    assert np.abs(found - whole).max() / whole.std() < bound


def test_the_main_graph_gives_the_last_position(tiny_fp32: Path) -> None:
    with _open(tiny_fp32, role="main") as runner:
        step = runner.step(np.array([_IDS, _IDS]), _ones(2, 40))
        assert step.logits.shape == (2, 1, 3072)
        assert step.present[0].shape == (2, 2, 40, 64)
        assert len(step.present) == 8
        with pytest.raises(ValidationUsageError, match="last positions only"):
            next(runner.logits(_IDS))


@pytest.mark.parametrize("folder", ["tiny_fp32", "tiny_fp16"])
def test_taps_are_the_values_inside(folder: str, request: pytest.FixtureRequest) -> None:
    """The last norm's output times the tied table is the logits; the folder's files stay as they were."""
    directory = request.getfixturevalue(folder)
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    taps = ["model.embed_tokens.ScaledEmbedding", "layers.2.mlp_residual", "model.norm.RMSNorm"]
    with _open(directory, taps=taps) as runner:
        step = runner.step(np.array([_IDS]), _ones(1, 40))
    assert list(step.taps) == taps
    assert all(tap.shape == (1, 40, 256) and tap.dtype == np.float32 for tap in step.taps.values())
    model = read_manifest(directory).graph("all")
    from onnx import load

    graph = load(directory / model.file)
    table = next(tensor for tensor in graph.graph.initializer if tensor.name == "model.embed_tokens.weight")
    from onnx.numpy_helper import to_array

    expected = step.taps["model.norm.RMSNorm"] @ to_array(table).astype(np.float32).T
    assert np.abs(step.logits - expected).max() / expected.std() < 0.02
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_taps_change_no_logits(tiny_fp32: Path) -> None:
    with _open(tiny_fp32) as plain, _open(tiny_fp32, taps=["layers.0.attn_residual"]) as tapped:
        ids, mask = np.array([_IDS]), _ones(1, 40)
        first, second = plain.step(ids, mask), tapped.step(ids, mask)
    assert first.taps == {}
    assert np.array_equal(first.logits, second.logits)


def test_a_buffer_for_past_and_present_gives_the_same(tiny_fp32: Path) -> None:
    with _open(tiny_fp32) as runner:
        ids = np.array([_IDS])
        state = runner.state_in_place(1, 64)
        found = [runner.step_in_place(ids[:, :24], _ones(1, 24), state)]
        found.append(runner.step_in_place(ids[:, 24:], _ones(1, 40), state))
        expected = runner.step(ids, _ones(1, 40))
        assert np.abs(np.concatenate(found, axis=1) - expected.logits).max() / expected.logits.std() < FP32_LOGITS
        assert np.abs(state.buffers[3].memory[:, :, :40] - expected.present[3]).max() < 1e-4
        assert not state.buffers[3].memory[:, :, 40:].any()


def test_a_cache_from_elsewhere_decides(tiny_fp32: Path) -> None:
    with _open(tiny_fp32, role="main") as runner:
        past = runner.step(np.array([_IDS]), _ones(1, 40)).present
        token, mask = np.array([[7]]), _ones(1, 41)
        right = runner.step(token, mask, past).logits
        wrong = runner.step(token, mask, runner.empty(1, 40)).logits
    assert np.abs(right - wrong).max() > 0.5


def test_what_is_not_there(tiny_fp32: Path, tmp_path: Path) -> None:
    with pytest.raises(FolderUnreadableError, match="no graph of role 'windowed', found main, all"):
        _open(tiny_fp32, role="windowed")
    with pytest.raises(FolderUnreadableError, match=r"model_all.onnx computes no 'layers.9.mlp_residual'"):
        _open(tiny_fp32, taps=["layers.9.mlp_residual"])
    with pytest.raises(ProviderUnavailableError, match=r"fp32\) runs on cpu, not on cuda"):
        _open(tiny_fp32, provider="cuda")
    with pytest.raises(ValidationUsageError, match="no provider 'tpu'"):
        _open(tiny_fp32, provider="tpu")
    damaged = altered(tiny_fp32, tmp_path / "damaged", {"onnx/model_all.onnx": b"\x08\x0a"})
    with pytest.raises(FolderUnreadableError, match=r"cannot load onnx/model_all.onnx on cpu"):
        _open(damaged)
    with pytest.raises(FolderUnreadableError):
        _open(altered(tiny_fp32, tmp_path / "text", {"onnx/model_all.onnx": b"graph"}), taps=["logits"])


def test_a_provider_that_this_onnxruntime_lacks(tiny_fp16: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it has it")
    with pytest.raises(ProviderUnavailableError, match="has no cuda provider, found"):
        _open(tiny_fp16, provider="cuda")


def test_a_later_onnxruntime_is_asked_for(tiny_fp32: Path, tmp_path: Path) -> None:
    folder = altered(tiny_fp32, tmp_path / "later", {})
    graphs = read_manifest(folder).graphs
    rewrite_manifest(folder, graphs=tuple(dataclasses.replace(graph, min_onnxruntime="99.0") for graph in graphs))
    with pytest.raises(ProviderUnavailableError, match=r"needs onnxruntime 99\.0 or later"):
        _open(folder)


def test_ids_of_another_vocabulary_and_long_texts(tiny_fp32: Path) -> None:
    with _open(tiny_fp32) as runner:
        for wrong in (-1, 3072):
            with pytest.raises(MismatchError, match=f"token id {wrong} does not exist: the model has 3072"):
                runner.step(np.array([[2, wrong]]), _ones(1, 2))
        with pytest.raises(ValidationUsageError, match="8193 tokens does not fit a context of 8192"):
            next(runner.logits([2] * 8193))
        with pytest.raises(FolderUnreadableError, match=r"could not run onnx/model_all.onnx"):
            runner.step(np.array([[2, 3]]), _ones(1, 2), runner.empty(2, 0))


def test_a_main_graph_of_all_positions_is_the_twin_too(tiny_fp32: Path, tmp_path: Path) -> None:
    folder = altered(tiny_fp32, tmp_path / "all", {})
    manifest = read_manifest(folder)
    main = dataclasses.replace(manifest.graph("all"), role="main")
    rewrite_manifest(folder, graphs=(main,))
    with _open(folder) as runner:
        assert runner.graph.role == "main"
        assert runner.step(np.array([[2, 3]]), _ones(1, 2)).logits.shape == (1, 2, 3072)


def test_bfloat16_travels_as_its_bits(tiny_fp16: Path, tmp_path: Path) -> None:
    """No CPU computes in bfloat16; what only hands values on shows that they arrive."""
    manifest = read_manifest(tiny_fp16)
    entry = manifest.graph("all").state[0]
    state = dataclasses.replace(entry, dtype="bfloat16", shape=("batch_size", 1, "past_sequence_length", 4))
    graph = dataclasses.replace(manifest.graph("all"), file="graph.onnx", logits="last", state=(state,))
    precision = dataclasses.replace(manifest.precision, activation_dtype="bfloat16")
    manifest = dataclasses.replace(manifest, graphs=(graph,), precision=precision, vocab_size=3, providers=("cpu",))
    _write_passing_on(tmp_path / "graph.onnx", state.past, state.present)
    with ArtifactRunner(tmp_path, manifest, taps=["inside"]) as runner:
        past = tuple(np.full((1, 1, 6, 4), bits, np.uint16) for bits in (0x3F80, 0xC000))
        step = runner.step(np.array([[1]]), _ones(1, 2), past)
    assert step.logits.tolist() == [[[1.0, -2.0, 0.5]]]
    assert step.taps["inside"].tolist() == step.logits.tolist()
    assert all(np.array_equal(found, given) for found, given in zip(step.present, past, strict=True))
    assert step.present[0].dtype == np.uint16


def _write_passing_on(file: Path, past: tuple[str, ...], present: tuple[str, ...]) -> None:
    from onnx import TensorProto, helper, save

    kind = TensorProto.BFLOAT16
    cache = ["batch_size", 1, "length", 4]
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", name]) for name in _INPUTS]
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["numbers"], ["inside"]),
            helper.make_node("Identity", ["inside"], ["logits"]),
            *(helper.make_node("Identity", [old], [new]) for old, new in zip(past, present, strict=True)),
        ],
        "passing on",
        [*ids, *(helper.make_tensor_value_info(name, kind, cache) for name in past)],
        [
            helper.make_tensor_value_info("logits", kind, ["batch_size", 1, 3]),
            *(helper.make_tensor_value_info(name, kind, cache) for name in present),
        ],
        [helper.make_tensor("numbers", kind, [1, 1, 3], [1.0, -2.0, 0.5])],
        value_info=[helper.make_tensor_value_info("inside", kind, ["batch_size", "s", 3])],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), file)


_INPUTS = ("input_ids", "attention_mask")
