"""Checkpoints that are quantised already: exported with exactly their codes, scales and zero points, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tolerances
import torch
from decoders import Graph, reference_logits, reference_model, write_checkpoint
from onnx import numpy_helper
from quantised_checkpoints import CONFIG, WINDOWED, Layout, Quantised, packed, quantise, write
from windowed_decoders import windowed_reference

from gemma_export.artifact import verify_folder
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.errors import CheckpointError
from gemma_export.pipeline import ExportRequest, ExportResult, export
from gemma_export.planning import plan_export
from gemma_export.precision import WeightOptions
from gemma_runtime import read_manifest
from gemma_validation import measure_drift

_LAYOUTS = {
    "gptq": Layout(),
    "gptq v2 zeros": Layout(symmetric=False, version="gptq_v2", group_size=64),
    "gptq zeros": Layout(symmetric=False),
    "gptq one group": Layout(group_size=-1, symmetric=False),
    "gptq groups of 64": Layout(group_size=64),
    "gptq 8 bits": Layout(bits=8, group_size=64),
    "gptq 8 bits zeros": Layout(bits=8, symmetric=False),
    "gptq by order": Layout(desc_act=True),
    "gptq by order zeros": Layout(desc_act=True, symmetric=False, group_size=64),
    "gptq by order 8 bits": Layout(desc_act=True, bits=8),
    "awq": Layout(method="awq", symmetric=False),
    "awq groups of 64": Layout(method="awq", symmetric=False, group_size=64),
}
_TARGETS = {"ort": ("ort", None), "portable": ("portable", None), "ort qdq": ("ort", "qdq")}


def _export(quantised: Quantised, output: Path, **options: Any) -> ExportResult:
    return export(ExportRequest(checkpoint=quantised.directory, output=output, **options))


def _initializers(folder: Path) -> dict[str, np.ndarray]:
    file = folder / read_manifest(folder).graph("main").file
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}


def _all_positions(folder: Path, root: Path) -> Graph:
    """The graph with every position, its products without 8-bit activations: what is left is float arithmetic."""
    path = folder / read_manifest(folder).graph("all").file
    model = onnx.load(path, load_external_data=False)
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        return Graph(path, optimised=False)
    model = onnx.load(path)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    onnx.save(model, root / "all.onnx")
    return Graph(root / "all.onnx")


def _cases() -> list[Any]:
    # every layout on the main target; on the others what differs there: order, zero points, bits
    others = ("gptq by order zeros", "gptq 8 bits", "awq")
    return [
        pytest.param(name, target, id=f"{name}-{target}")
        for target in _TARGETS
        for name in (_LAYOUTS if target == "ort" else others)
    ]


@pytest.mark.parametrize(("name", "target"), _cases())
def test_the_folder_computes_what_the_checkpoint_means(name: str, target: str, tmp_path: Path) -> None:
    """Against transformers with the matrices multiplied out by numpy; what is left is float arithmetic."""
    layout = _LAYOUTS[name]
    quantised = write(tmp_path / "checkpoint", layout)
    word, weight_format = _TARGETS[target]
    # without a flag, or with the one that says what there is
    scheme = None if name == "gptq" else f"int{layout.bits}"
    result = _export(
        quantised, tmp_path / "out", target=word, weights=WeightOptions(scheme=scheme, format=weight_format)
    )
    assert result.plan.precision.name == f"int{layout.bits}"
    data = next(file for file in result.plan.files if file.path.endswith("_data"))
    assert data.exact
    assert (tmp_path / "out" / data.path).stat().st_size == data.nbytes
    ids = np.random.default_rng(1).integers(108, 3072, (2, 24))
    expected = reference_logits(quantised.model, ids)
    found, _ = _all_positions(tmp_path / "out", tmp_path).step(ids, np.ones_like(ids))
    assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * expected.std()
    assert measure_drift(expected, found).mean_kl <= tolerances.FP32_MEAN_KL


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("family", "name"), [("gemma2", "gptq by order zeros"), ("gemma3 nested", "awq")])
def test_families_with_windows(family: str, name: str, precision: str, tmp_path: Path) -> None:
    """Against transformers with the matrices multiplied out, several windows long."""
    quantised = write(tmp_path / "checkpoint", _LAYOUTS[name], config=WINDOWED[family])
    _export(quantised, tmp_path / "out", weights=WeightOptions(scheme="int4"), precision=precision)
    ids = np.random.default_rng(1).integers(108, 3072, (2, 40))
    _assert_logits(tmp_path, quantised.model, ids, precision)


@pytest.mark.parametrize("activations", ["fp32", "fp16"])
def test_codes_scales_and_zero_points_are_the_checkpoints(activations: str, tmp_path: Path) -> None:
    layout = _LAYOUTS["gptq by order zeros"]
    quantised = write(tmp_path / "checkpoint", layout)
    options = WeightOptions(scheme="int4")
    _export(quantised, tmp_path / "out", weights=options, precision=activations, residual_scale="off")
    stored = _initializers(tmp_path / "out")
    for name, parts in (
        ("model.layers.1.self_attn.qkv_proj", ("q_proj", "k_proj", "v_proj")),
        ("model.layers.0.mlp.up_proj", ("up_proj",)),
    ):
        prefix = name.rpartition(".")[0]
        matrices = [quantised.matrices[f"{prefix}.{part}"] for part in parts]
        order = np.argsort(matrices[0].groups, kind="stable")
        shared = name.replace("up_proj", "gate_proj")
        assert (stored[f"{shared}.weight.order"] == order).all()
        codes, scales, zeros = (
            np.concatenate([getattr(matrix, field) for matrix in matrices]) for field in ("codes", "scales", "zeros")
        )
        if "up_proj" in name:
            # in the order that the down projection's features have there
            rows = np.argsort(quantised.matrices["model.layers.0.mlp.down_proj"].groups, kind="stable")
            codes, scales, zeros = codes[rows], scales[rows], zeros[rows]
        data = stored[f"{name}.weight.data"].reshape(len(codes), -1)
        assert (
            np.stack((data & 15, data >> 4), -1).reshape(len(codes), -1)[:, : codes.shape[1]] == codes[:, order]
        ).all()
        np.testing.assert_array_equal(stored[f"{name}.weight.scales"].astype(np.float32), scales.astype(np.float32))
        packed = stored[f"{name}.weight.zero_points"]
        assert (np.stack((packed & 15, packed >> 4), -1).reshape(len(codes), -1)[:, : zeros.shape[1]] == zeros).all()


def test_one_gather_serves_products_of_the_same_activations(tmp_path: Path) -> None:
    quantised = write(tmp_path / "checkpoint", _LAYOUTS["gptq by order"])
    _export(quantised, tmp_path / "out")
    graph = onnx.load(tmp_path / "out/onnx/model_q4.onnx", load_external_data=False).graph
    orders = {tensor.name for tensor in graph.initializer if tensor.name.endswith(".order")}
    gathers = [node for node in graph.node if node.op_type == "Gather" and set(node.input) & orders]
    # query-key-value, output, gate and up; down's order is in the rows of gate and up
    assert len(gathers) == len(orders) == 3 * 2


def test_down_projections_beside_floating_point_gather_too(tmp_path: Path) -> None:
    quantised = write(tmp_path / "checkpoint", _LAYOUTS["gptq by order"], skip=lambda module: "up_proj" in module)
    result = _export(quantised, tmp_path / "out")
    data = next(file for file in result.plan.files if file.path.endswith("_data"))
    assert (tmp_path / "out" / data.path).stat().st_size == data.nbytes
    assert "model.layers.0.mlp.down_proj.weight.order" in _initializers(tmp_path / "out")
    ids = np.random.default_rng(1).integers(108, 3072, (1, 24))
    expected = reference_logits(quantised.model, ids)
    found, _ = _all_positions(tmp_path / "out", tmp_path).step(ids, np.ones_like(ids))
    assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * expected.std()


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_residual_streams_power_of_two_goes_into_scales(method: str, tmp_path: Path) -> None:
    quantised = write(tmp_path / "checkpoint", Layout(method=method, symmetric=False))
    options: dict[str, Any] = {"weights": WeightOptions(scheme="int4"), "precision": "fp16"}
    plain = _export(quantised, tmp_path / "plain", residual_scale="off", **options)
    scaled = _export(quantised, tmp_path / "scaled", residual_scale="2", **options)
    far = _export(quantised, tmp_path / "far", residual_scale="12", **options)
    stored = [_initializers(tmp_path / name) for name in ("plain", "scaled")]
    name = "model.layers.0.mlp.down_proj.weight"
    np.testing.assert_array_equal(stored[0][f"{name}.data"], stored[1][f"{name}.data"])
    np.testing.assert_array_equal(stored[0][f"{name}.scales"], stored[1][f"{name}.scales"] * np.float16(4))
    assert plain.options["rounded_scales"]["count"] == scaled.options["rounded_scales"]["count"] == 0
    assert "exported as they are" in scaled.notes[-1]
    rounded = far.options["rounded_scales"]
    # o_proj and down_proj of two layers
    writers = [m for key, m in quantised.matrices.items() if key.endswith(("o_proj", "down_proj"))]
    found = sum(int((_as_float16(m.scales, 12) != m.scales).sum()) for m in writers)
    assert rounded["count"] == found > 0
    assert rounded["total"] == sum(m.scales.size for m in quantised.matrices.values())
    assert "no float16 numbers" in far.notes[-1]


def _as_float16(scales: np.ndarray, shift: int) -> np.ndarray:
    """What float16 makes of scales times 2^-shift, times 2^shift; by steps of its subnormal numbers."""
    wide = scales.astype(np.float64) * 2.0**-shift
    return np.where(wide < 2.0**-14, np.ceil(wide * 2.0**24) * 2.0**-24, wide) * 2.0**shift


@pytest.mark.parametrize("name", ["gptq by order zeros", "awq"])
def test_floating_point_when_asked_for(name: str, tmp_path: Path) -> None:
    quantised = write(tmp_path / "checkpoint", _LAYOUTS[name])
    result = _export(quantised, tmp_path / "out", precision="fp32")
    assert result.plan.precision.name == "fp32"
    assert result.options["dequantised"].startswith(name.split()[0].upper())
    stored = _initializers(tmp_path / "out")
    for module, matrix in quantised.matrices.items():
        if "o_proj" in module:
            np.testing.assert_array_equal(stored[f"{module}.weight"], matrix.dequantised())
    ids = np.random.default_rng(1).integers(108, 3072, (1, 24))
    expected = reference_logits(quantised.model, ids)
    found, _ = Graph(tmp_path / "out/onnx/model_all.onnx").step(ids, np.ones_like(ids))
    assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * expected.std()


@pytest.mark.parametrize("scales", ["bfloat16", "float32"])
def test_scales_of_other_types(scales: str, tmp_path: Path) -> None:
    """Taken where the activations' type has all of their bits."""
    layout = Layout(scales=scales)
    quantised = write(tmp_path / "checkpoint", layout)
    _export(quantised, tmp_path / "out")
    found = _initializers(tmp_path / "out")["model.layers.0.self_attn.o_proj.weight.scales"]
    expected = quantised.matrices["model.layers.0.self_attn.o_proj"].scales.astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    half = ExportRequest(checkpoint=quantised.directory, precision="fp16", weights=WeightOptions(scheme="int4"))
    if scales == "float32":
        with pytest.raises(CheckpointError, match="scales is float32: as float16 it would be rounded"):
            plan_export(half)
    else:
        assert plan_export(half).precision.name == "int4-fp16"


def test_what_writers_add_is_understood(tmp_path: Path) -> None:
    """Biases of zeros, a copy of the tied head, group indices of 64 bits."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        for name in [name for name in tensors if name.endswith(".g_idx")]:
            tensors[name] = tensors[name].astype(np.int64)
            tensors[name.replace("g_idx", "bias")] = np.zeros(tensors[name.replace("g_idx", "scales")].shape[1], "f2")

    plain = write(tmp_path / "plain", Layout(desc_act=True))
    quantised = write(tmp_path / "checkpoint", Layout(desc_act=True), change=change)
    folders = [_export(checkpoint, tmp_path / name) for checkpoint, name in ((plain, "a"), (quantised, "b"))]
    data = [result.folder.directory / "onnx/model_q4.onnx_data" for result in folders]
    assert data[0].read_bytes() == data[1].read_bytes()


def test_matrices_that_the_checkpoint_leaves_alone(tmp_path: Path) -> None:
    """They stay in floating point; the embedding has as many bits as are asked for."""
    quantised = write(tmp_path / "checkpoint", Layout(), skip=lambda module: "layers.1.mlp" in module)
    result = _export(quantised, tmp_path / "out", weights=WeightOptions(scheme="int4", embedding_bits=8))
    stored = set(_initializers(tmp_path / "out"))
    assert {"model.layers.0.mlp.up_proj.weight.data", "model.layers.1.mlp.up_proj.weight"} <= stored
    assert "model.embed_tokens.weight.table" in stored
    assert read_manifest(tmp_path / "out").precision.options["embedding_bits"] == 8
    assert not any("floating point" in warning for warning in result.plan.warnings)
    plain = plan_export(ExportRequest(checkpoint=quantised.directory))
    assert any("leaves its embedding in floating point: 786 kB" in warning for warning in plain.warnings)


def test_a_quantised_head(tmp_path: Path) -> None:
    layout = Layout(symmetric=False)
    untied = CONFIG | {"tie_word_embeddings": False}
    head = quantise(np.random.default_rng(2).standard_normal((3072, 64)) * 0.1, layout, None)

    def change(tensors: dict[str, np.ndarray]) -> None:
        del tensors["lm_head.weight"]
        tensors.update({f"lm_head.{part}": value for part, value in packed(head, layout).items()})

    quantised = write(tmp_path / "checkpoint", layout, config=untied, change=change, settings={"lm_head": True})
    quantised.model.lm_head.weight.data = torch.from_numpy(head.dequantised())
    _export(quantised, tmp_path / "out")
    ids = np.random.default_rng(1).integers(108, 3072, (1, 24))
    expected = reference_logits(quantised.model, ids)
    found, _ = _all_positions(tmp_path / "out", tmp_path).step(ids, np.ones_like(ids))
    assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * expected.std()


def test_the_folder_says_what_it_is(tmp_path: Path) -> None:
    quantised = write(tmp_path / "checkpoint", _LAYOUTS["gptq groups of 64"])
    _export(quantised, tmp_path / "out")
    assert verify_folder(tmp_path / "out").extra_files == ()
    options = read_manifest(tmp_path / "out").precision.options
    assert {
        key: options[key] for key in ("scheme", "bits", "block_size", "symmetric", "quantizer", "embedding_bits")
    } == {
        "scheme": "int4",
        "bits": 4,
        "block_size": 64,
        "symmetric": True,
        "quantizer": "checkpoint",
        "embedding_bits": "float",
    }
    assert options["checkpoint"] == "GPTQ, 4 bits, groups of 64, symmetric"
    assert "the checkpoint's own integers (GPTQ, 4 bits, groups of 64, symmetric)" in (
        tmp_path / "out/README.md"
    ).read_text(encoding="utf-8")
    # loaders would look for qweights
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("family", ["gemma", *WINDOWED])
def test_weights_on_q4_0s_grid_are_exact(family: str, precision: str, tmp_path: Path) -> None:
    """Google's "q4_0-unquantized" fine-tunes with --int4 --block-size 32 --symmetric, head and embedding too."""
    config = CONFIG if family == "gemma" else WINDOWED[family]
    model = reference_model(config) if family == "gemma" else windowed_reference(config)
    generator = np.random.default_rng(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                rows, columns = parameter.shape
                codes = generator.integers(-7, 8, (rows, columns // 32, 32))
                scales = generator.uniform(0.01, 0.04, (rows, columns // 32, 1)).astype(np.float16)
                weights = (codes * scales.astype(np.float32)).astype(np.float32).reshape(rows, columns)
                parameter.copy_(torch.from_numpy(weights))
    checkpoint = write_checkpoint(model, tmp_path / "checkpoint", config, BUILTIN_DIRECTORY)
    options = WeightOptions(scheme="int4", block_size=32, symmetric=True)
    export(ExportRequest(checkpoint=checkpoint, output=tmp_path / "out", weights=options, precision=precision))
    _assert_logits(tmp_path, model, generator.integers(108, 3072, (1, 40)), precision)


def _assert_logits(root: Path, model: Any, ids: np.ndarray, precision: str) -> None:
    """Of the folder `root`/out: the reference's, but for the rounding of activations."""
    expected = reference_logits(model, ids)
    found, _ = _all_positions(root / "out", root).step(ids, np.ones_like(ids))
    bound = tolerances.FP32_LOGITS if precision == "fp32" else tolerances.FP16_LOGITS
    assert np.abs(found - expected).max() <= bound * expected.std()
