"""Quantised checkpoints that are damaged, hostile, or not what is asked for: exit codes, nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from programs import assert_error, gemma_export
from quantised_checkpoints import Layout, Quantised, write

from gemma_export.checkpoint import (
    QuantisedSource,
    architecture_view,
    open_checkpoint,
    read_levels,
    read_quantisation,
)
from gemma_export.errors import CheckpointError, GemmaExportError, NonFiniteError, UsageError
from gemma_export.pipeline import ExportRequest, export
from gemma_export.planning import plan_export
from gemma_export.precision import WeightOptions

_Q = "model.layers.0.self_attn.q_proj"
_DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    return write(tmp_path_factory.mktemp("quantised") / "gemma-gptq", Layout(symmetric=False))


@pytest.mark.parametrize(
    ("options", "phrases"),
    [
        (["--int8"], ["--int8 contradicts the checkpoint", "GPTQ, 4 bits, groups of 32, with zero points"]),
        (["--int4", "--block-size", "64"], ["--block-size 64 contradicts the checkpoint"]),
        (["--int4", "--symmetric"], ["--symmetric contradicts the checkpoint"]),
        (["--int4", "--quantizer", "rtn"], ["--quantizer rtn has nothing to choose"]),
        (["--int4", "--max-kl", "0.1"], ["--max-kl has nothing to choose"]),
        (
            ["--int4", "--adapter", "somewhere"],
            ["--adapter cannot be merged into integers", "with --fp32 or --fp16 alone"],
        ),
        (["--adapter", "somewhere"], ["--adapter cannot be merged into integers"]),
        (["--embedding-bits", "8"], ["neither --int4 nor --int8 is given"]),
        (["--target", "directml"], ["target directml has no kernels for int4 weights"]),
    ],
)
def test_contradictions(checkpoint: Quantised, options: list[str], phrases: list[str], tmp_path: Path) -> None:
    result = gemma_export("--checkpoint", checkpoint.directory, *options, "--output", tmp_path / "out")
    assert_error(result, 2, *phrases)
    assert list(tmp_path.iterdir()) == []


def test_a_precision_file_contradicts(checkpoint: Quantised, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('[[rule]]\nmatch = "*down_proj*"\nbits = 8\n')
    options = WeightOptions(scheme="int4", config=tmp_path / "p.toml")
    with pytest.raises(UsageError, match="--precision-config has nothing to choose"):
        plan_export(ExportRequest(checkpoint=checkpoint.directory, weights=options))


def test_the_same_again_is_no_contradiction(checkpoint: Quantised) -> None:
    options = WeightOptions(scheme="int4", block_size=32, symmetric=False)
    assert plan_export(ExportRequest(checkpoint=checkpoint.directory, weights=options)).precision.name == "int4"


def test_synthetic_weights_of_its_shapes_are_ordinary(checkpoint: Quantised) -> None:
    plan = plan_export(ExportRequest(checkpoint=checkpoint.directory, synthetic_seed=0))
    assert plan.precision.name == "fp32"
    assert plan.facts.quantised_by is None


def test_bfloat16_would_round_the_scales(checkpoint: Quantised) -> None:
    request = ExportRequest(checkpoint=checkpoint.directory, precision="bf16", weights=WeightOptions(scheme="int4"))
    with pytest.raises(CheckpointError, match="scales is float16: as bfloat16 it would be rounded"):
        plan_export(request)


def test_an_adapter_is_merged_into_what_the_integers_mean(checkpoint: Quantised, tmp_path: Path) -> None:
    shape = (128, 64)
    generator = np.random.default_rng(4)
    a, b = (generator.standard_normal(size).astype(np.float32) for size in ((2, 64), (128, 2)))
    names = {f"base_model.model.{_Q}.lora_A.weight": a, f"base_model.model.{_Q}.lora_B.weight": b}
    adapter = adapters.write(tmp_path / "adapter", names, r=2, lora_alpha=2, target_modules=f".*{_Q}")
    request = ExportRequest(
        checkpoint=checkpoint.directory,
        adapter=str(adapter),
        precision="fp32",
        target="portable",
        output=tmp_path / "o",
    )
    export(request)
    graph = onnx.load(tmp_path / "o/onnx/model.onnx").graph
    found = next(numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == f"{_Q}.weight")
    assert found.shape == shape
    np.testing.assert_allclose(found, checkpoint.matrices[_Q].dequantised() + b @ a, atol=1e-5)


def test_dry_run_says_it_without_torch(checkpoint: Quantised) -> None:
    code = (
        "import sys; sys.argv = ['gemma-export', '--checkpoint', sys.argv[1], '--dry-run', '--json']\n"
        "from gemma_export.cli import cli; cli.main(standalone_mode=False)\n"
        "sys.exit(bool({'torch', 'onnx', 'onnx_ir'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(checkpoint.directory)], check=True, capture_output=True, text=True
    )
    plan = json.loads(result.stdout)
    assert plan["checkpoint_quantisation"] == "GPTQ, 4 bits, groups of 32, with zero points"
    assert "the checkpoint's own integers" in gemma_export("--checkpoint", checkpoint.directory, "--dry-run").stdout


def _part(name: str, value: Callable[[np.ndarray], np.ndarray] | None) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        if value is None:
            del tensors[name]
        else:
            tensors[name] = np.ascontiguousarray(value(tensors[name]))

    return change


def _set(position: tuple[int, ...] | int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(tensor: np.ndarray) -> np.ndarray:
        tensor[position] = value
        return tensor

    return change


def _also(name: str, value: np.ndarray) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.update({name: value})


_ASYMMETRIC, _ORDERED = Layout(symmetric=False), Layout(desc_act=True)
_AWQ = Layout(method="awq", symmetric=False)


@pytest.mark.parametrize(
    ("layout", "change", "phrases"),
    [
        (_ASYMMETRIC, _part(f"{_Q}.qweight", lambda t: t[:-1]), [f"{_Q}.qweight: expected shape [8, 128]", "[7, 128]"]),
        (_ASYMMETRIC, _part(f"{_Q}.qzeros", lambda t: t[:0]), [f"{_Q}.qzeros: expected shape [2, 16]", "[0, 16]"]),
        (_ASYMMETRIC, _part(f"{_Q}.scales", lambda t: t.T), [f"{_Q}.scales: expected shape [2, 128]", "[128, 2]"]),
        (_ASYMMETRIC, _part(f"{_Q}.scales", lambda t: t.astype(np.int16)), [f"{_Q}.scales: expected float32", "int16"]),
        (_ASYMMETRIC, _part(f"{_Q}.qweight", lambda t: t.astype(np.int64)), [f"{_Q}.qweight: expected int32", "int64"]),
        (_ASYMMETRIC, _part(f"{_Q}.scales", None), [f"tensor {_Q}.scales is missing"]),
        (_ORDERED, _part(f"{_Q}.g_idx", None), [f"tensor {_Q}.g_idx is missing"]),
        (_AWQ, _part(f"{_Q}.qzeros", lambda t: t.T), [f"{_Q}.qzeros: expected shape [2, 16]"]),
        (_ASYMMETRIC, _also(f"{_Q}.weight", np.zeros((128, 64), np.float16)), [f"{_Q}.weight is stored twice"]),
        (_ASYMMETRIC, _also("model.layers.7.x.qweight", np.zeros((2, 2), np.int32)), ["unexpected"]),
    ],
)
def test_wrong_parts_show_in_a_plan(
    layout: Layout, change: Callable[[dict[str, np.ndarray]], None], phrases: list[str], tmp_path: Path
) -> None:
    quantised = write(tmp_path / "checkpoint", layout, change=change)
    with pytest.raises(CheckpointError) as error:
        plan_export(ExportRequest(checkpoint=quantised.directory))
    for phrase in phrases:
        assert phrase in error.value.message


@pytest.mark.parametrize(
    ("layout", "change", "kind", "phrases"),
    [
        (
            _ASYMMETRIC,
            _part(f"{_DOWN}.scales", _set((1, 7), np.nan)),
            NonFiniteError,
            [f"{_DOWN}.scales, position [1, 7]: nan"],
        ),
        (_AWQ, _part(f"{_DOWN}.scales", _set((1, 7), np.inf)), NonFiniteError, ["position [1, 7]: inf"]),
        (
            _ORDERED,
            _part(f"{_Q}.g_idx", _set(9, 2)),
            CheckpointError,
            [f"{_Q}.g_idx, position 9: group 2, expected 0 to 1"],
        ),
        (_ORDERED, _part(f"{_Q}.g_idx", _set(9, -1)), CheckpointError, ["position 9: group -1"]),
        (
            _ORDERED,
            _part(f"{_DOWN}.g_idx", lambda t: np.zeros_like(t)),
            CheckpointError,
            [f"{_DOWN}.g_idx: group 0 has 96 features, expected 32"],
        ),
        (
            _ORDERED,
            _part(f"{_Q}.g_idx", lambda t: t[::-1]),
            CheckpointError,
            ["k_proj.g_idx differs from", "q_proj.g_idx"],
        ),
        (
            _ORDERED,
            _part("model.layers.0.mlp.up_proj.g_idx", lambda t: t[::-1]),
            CheckpointError,
            ["up_proj", "gate_proj", "differs from"],
        ),
        (
            _ASYMMETRIC,
            _part(f"{_Q}.g_idx", lambda t: t[::-1]),
            CheckpointError,
            [f"{_Q}.g_idx: groups are not of neighbouring features"],
        ),
        # a nibble of 15 in the first format
        (_ASYMMETRIC, _part(f"{_Q}.qzeros", _set((0, 3), -1)), CheckpointError, ["a stored zero point of 15 means"]),
        (
            Layout(),
            _part(f"{_Q}.qzeros", _set((0, 3), 0x77767777)),
            CheckpointError,
            ["zero point 7 of group 0, output 28"],
        ),
        (Layout(), _also(f"{_Q}.bias", np.ones(128, np.float16)), CheckpointError, [f"{_Q}.bias is not zero"]),
    ],
)
def test_wrong_values_show_before_anything_is_written(
    layout: Layout,
    change: Callable[[dict[str, np.ndarray]], None],
    kind: type[GemmaExportError],
    phrases: list[str],
    tmp_path: Path,
) -> None:
    quantised = write(tmp_path / "checkpoint", layout, change=change)
    with pytest.raises(kind) as error:
        export(ExportRequest(checkpoint=quantised.directory, output=tmp_path / "out"))
    assert error.value.exit_code == 3
    for phrase in phrases:
        assert phrase in error.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    ("settings", "phrases"),
    [
        ({"group_size": 24}, ["group_size is 24, expected a multiple of 32", "--fp32"]),
        ({"checkpoint_format": "marlin"}, ["checkpoint_format must be gptq or gptq_v2"]),
        ({"quant_method": "bitsandbytes"}, ["bitsandbytes"]),
        ("absent", ["qweight", "config.json needs their quantization_config"]),
    ],
)
def test_what_cannot_be_taken_ends_with_3(settings: Any, phrases: list[str], tmp_path: Path) -> None:
    quantised = write(tmp_path / "checkpoint", Layout(), settings={} if settings == "absent" else settings)
    if settings == "absent":
        config = json.loads((quantised.directory / "config.json").read_text())
        del config["quantization_config"]
        (quantised.directory / "config.json").write_text(json.dumps(config))
    result = gemma_export("--checkpoint", quantised.directory, "--output", tmp_path / "out")
    assert_error(result, 3, *phrases)
    assert not (tmp_path / "out").exists()


def test_integers_that_are_not_there(tmp_path: Path) -> None:
    quantised = write(tmp_path / "checkpoint", Layout(), skip=lambda module: True)
    with pytest.raises(CheckpointError, match="no matrix has a qweight"):
        plan_export(ExportRequest(checkpoint=quantised.directory))


@pytest.mark.parametrize("layout", [Layout(), Layout(method="awq", symmetric=False)], ids=["gptq", "awq"])
def test_features_that_fill_no_word(layout: Layout, tmp_path: Path) -> None:
    quantised = write(tmp_path / "checkpoint", layout)
    config = json.loads((quantised.directory / "config.json").read_text())
    (quantised.directory / "config.json").write_text(json.dumps(config | {"intermediate_size": 100}))
    with pytest.raises(CheckpointError, match=r"gate_proj.qweight: 100 output features do not fill int32 words of 8"):
        plan_export(ExportRequest(checkpoint=quantised.directory))


def test_a_packed_matrix_of_two_kinds(tmp_path: Path) -> None:
    """Only where they are packed: the portable target keeps them apart."""
    quantised = write(tmp_path / "checkpoint", Layout(), skip=lambda module: module == _Q)
    with pytest.raises(CheckpointError, match=r"k_proj.* is quantised and .*q_proj.* is not"):
        plan_export(ExportRequest(checkpoint=quantised.directory))
    plan = plan_export(ExportRequest(checkpoint=quantised.directory, target="portable"))
    assert plan.precision.scheme is not None
    assert plan.precision.scheme.format_of(f"{_Q}.weight", (128, 64)) is None


def test_gptqmodels_own_borrowing_is_undone(tmp_path: Path) -> None:
    """It subtracts whole words, so a zero point of 0 borrows from its neighbour, and its loader gives that back."""

    def borrow(tensors: dict[str, np.ndarray]) -> None:
        # outputs 24 to 31 of group 0 in the second format: 0x99909999 is one zero point of 0
        tensors[f"{_Q}.qzeros"].view(np.uint32)[0, 3] = 0x99909999 - 0x11111111

    quantised = write(
        tmp_path / "checkpoint", _ASYMMETRIC, change=borrow, settings={"meta": {"quantizer": ["gptqmodel:2.0.0"]}}
    )
    opened = open_checkpoint(quantised.directory)
    quantisation = read_quantisation(opened.config)
    assert opened.source is not None
    assert quantisation is not None
    view = architecture_view(opened.source, quantisation, {f"{_Q}.weight": (128, 64)})
    assert isinstance(view, QuantisedSource)
    assert read_levels(view, f"{_Q}.weight").zero_points[24:32, 0].tolist() == [9, 9, 9, 9, 0, 9, 9, 9]
