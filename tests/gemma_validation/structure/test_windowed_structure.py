"""Windows, softcaps, rotary embeddings and norms of Gemma 2 and 3: silent on good folders, and a wrong one is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_edits import attribute, constant, edited, named, nodes_of
from reference_exports import structure_of

from gemma_export.precision import WeightOptions
from gemma_runtime.manifest import read_manifest

Folders = Callable[..., Path]

# the stream is stored times 2^-5
_FP16: dict[str, Any] = {"precision": "fp16", "residual_scale": "5"}
_INT4 = WeightOptions(scheme="int4")


def _failed(folder: Path) -> dict[str, str]:
    checks = structure_of(folder)
    return {check.name: check.message for check in checks if check.outcome != "passed"}


# every configuration, and every way in which a graph says these things
@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("gemma2", {}),
        ("gemma2", _FP16),
        ("gemma2", {"target": "portable"}),
        ("gemma2 types", {"weights": _INT4}),
        ("gemma3", {}),
        ("gemma3", {**_FP16, "weights": _INT4}),
        ("gemma3", {"target": "portable", **_FP16}),
        ("gemma3", {"target": "portable", "keep_functions": True, **_FP16}),
        ("gemma3 nested", {"weights": WeightOptions(scheme="int8-dynamic")}),
    ],
    ids=str,
)
def test_a_good_folder_passes_everything(config: str, options: dict[str, Any], windowed_folder: Folders) -> None:
    assert _failed(windowed_folder(config, **options)) == {}


def _softcap(model: onnx.ModelProto) -> None:
    attribute(nodes_of(model, "GroupQueryAttention")[3], "softcap", 0.0)


def _window(model: onnx.ModelProto) -> None:
    attribute(nodes_of(model, "GroupQueryAttention")[2], "local_window_size", 10)


def _no_window(model: onnx.ModelProto) -> None:
    attribute(nodes_of(model, "GroupQueryAttention")[0], "local_window_size", -1)


def _scale(model: onnx.ModelProto) -> None:
    attribute(nodes_of(model, "GroupQueryAttention")[1], "scale", 32**-0.5)


def _no_final_softcap(model: onnx.ModelProto) -> None:
    node = named(model, "logits")
    node.op_type = "Identity"
    node.input[:] = [named(model, named(model, node.input[0]).input[0]).input[0]]


def _other_final_softcap(model: onnx.ModelProto) -> None:
    constant(model, "decoder.softcap").raw_data = np.float32(4.5).tobytes()


def _no_post_norm(model: onnx.ModelProto) -> None:
    branch = named(model, "model.layers.1.post_feedforward_layernorm.RMSNorm").input[0]
    named(model, "layers.1.mlp_residual").input[1] = branch


def _no_pre_norm(model: onnx.ModelProto) -> None:
    named(model, "model.layers.2.mlp.gate_proj.Linear").input[0] = "layers.2.attn_residual"


def _epsilon_behind(model: onnx.ModelProto) -> None:
    attribute(named(model, "model.layers.3.post_attention_layernorm.RMSNorm"), "epsilon", 1e-6)


@pytest.mark.parametrize(
    ("edit", "check", "told"),
    [
        (_softcap, "attention", "model.layers.3.self_attn.GroupQueryAttention: softcap is 0.0, expected 3.0"),
        (_window, "attention", "model.layers.2.self_attn.GroupQueryAttention: window is 10, expected 9"),
        (_no_window, "attention", "model.layers.0.self_attn.GroupQueryAttention: window is 0, expected 9"),
        (_scale, "attention", "scale is 0.17677"),
        (_no_final_softcap, "soft-capping", "logits are not 5 * tanh(. / 5)"),
        (_other_final_softcap, "soft-capping", "the bound is 4.5 and 4.5, expected 5"),
        (_no_post_norm, "residual stream", "and what model.layers.1.post_feedforward_layernorm computes"),
        (_no_pre_norm, "modules", "reads layers.2.attn_residual, expected model.layers.2.pre_feedforward_layernorm"),
        (_epsilon_behind, "epsilon", "model.layers.3.post_attention_layernorm.SimplifiedLayerNormalization: epsilon"),
    ],
)
def test_an_edited_gemma2_is_found(
    edit: Callable[[onnx.ModelProto], None], check: str, told: str, windowed_folder: Folders, tmp_path: Path
) -> None:
    failed = _failed(edited(windowed_folder("gemma2"), tmp_path / "edited", edit))
    assert told in failed[check]


def _rotary(model: onnx.ModelProto, layer: int, part: str) -> onnx.NodeProto:
    return named(model, f"model.layers.{layer}.self_attn.{part}_rotary")


def _local_on_global(model: onnx.ModelProto) -> None:
    node = _rotary(model, 5, "key")
    node.input[:] = [name.replace("rotary.", "rotary_local.") for name in node.input]


def _sine_for_cosine(model: onnx.ModelProto) -> None:
    node = _rotary(model, 5, "query")
    node.input[2], node.input[3] = node.input[3], node.input[2]


def _factor(model: onnx.ModelProto) -> None:
    found = constant(model, "rotary.frequencies_local")
    found.raw_data = (np.frombuffer(found.raw_data, np.float32) / 8).tobytes()


def _no_factor(model: onnx.ModelProto) -> None:
    found = constant(model, "rotary.frequencies")
    found.raw_data = (np.frombuffer(found.raw_data, np.float32) * 8).tobytes()


def _other_positions(model: onnx.ModelProto) -> None:
    """A step's positions counted from 0 in every step."""
    cast = named(model, named(model, "rotary_local.angles").input[0])
    named(model, cast.input[0]).input[0] = "rotary_local.rows"


def _sine_twice(model: onnx.ModelProto) -> None:
    named(model, "rotary.cos").op_type = "Sin"


def _keys_for_queries(model: onnx.ModelProto) -> None:
    _rotary(model, 2, "query").input[0] = named(model, "model.layers.2.self_attn.q_norm.split.Reshape").input[0]


def _swapped_norms(model: onnx.ModelProto) -> None:
    norms = [named(model, f"model.layers.2.self_attn.{part}_norm.SimplifiedLayerNormalization") for part in "qk"]
    norms[0].input[1], norms[1].input[1] = norms[1].input[1], norms[0].input[1]


def _half_angles(model: onnx.ModelProto) -> None:
    cast = named(model, named(model, "rotary.angles").input[0])
    attribute(cast, "to", onnx.TensorProto.FLOAT16)


@pytest.mark.parametrize(
    ("edit", "check", "told"),
    [
        (_local_on_global, "rotary embedding", "['rotary_local.cos', 'rotary_local.sin'], expected rotary.cos"),
        (_sine_for_cosine, "rotary embedding", "['rotary.sin', 'rotary.cos'], expected rotary.cos"),
        (_factor, "rotary tables", "frequencies_local: 0.125 at frequency 0, expected 1 for rope_theta 333.3"),
        (_no_factor, "rotary tables", "frequency 0, expected 0.125 for rope_theta 50000.5, factor 8"),
        (_other_positions, "rotary tables", "expected positions"),
        (_sine_twice, "rotary tables", "rotary.cos: it is ('Sin', 'rotary.angles'), expected Cos of rotary.angles"),
        (_keys_for_queries, "modules", "reads model.layers.2.self_attn.q_proj, model.layers.2.self_attn.k_norm"),
        (_swapped_norms, "weights", "reads model.layers.2.self_attn.k_norm.gain, expected a weight of"),
        (_half_angles, "rotary tables", "positions are no float32 numbers"),
    ],
)
def test_an_edited_gemma3_is_found(
    edit: Callable[[onnx.ModelProto], None], check: str, told: str, windowed_folder: Folders, tmp_path: Path
) -> None:
    failed = _failed(edited(windowed_folder("gemma3"), tmp_path / "edited", edit))
    assert told in failed[check]


def test_a_portable_mask_of_another_window(windowed_folder: Folders, tmp_path: Path) -> None:
    """The name says 9, the number that distances are held against says 10; then a layer reads another's mask."""

    def wider(model: onnx.ModelProto) -> None:
        constant(model, "attention.window_9").raw_data = np.int64(10).tobytes()

    def other(model: onnx.ModelProto) -> None:
        named(model, "model.layers.2.self_attn.Attention").input[3] = "attention.visible"

    folder = windowed_folder("gemma2", target="portable")
    failed = _failed(edited(folder, tmp_path / "wider", wider))
    assert "model.layers.0.self_attn.Attention: window is 10, expected 9" in failed["attention"]
    failed = _failed(edited(folder, tmp_path / "other", other))
    assert "model.layers.2.self_attn.Attention: window is 0, expected 9" in failed["attention"]
    assert "input 3 is attention.visible, expected attention.visible_window_9" in failed["caches"]


def test_only_norms_that_read_the_stream_follow_its_scale(windowed_folder: Folders, tmp_path: Path) -> None:
    """Behind a branch, and on query heads, the epsilon is config.json's own."""
    folder = windowed_folder("gemma2", **_FP16)
    shift = read_manifest(folder).precision.options["residual_scale"]["shift"]
    assert shift

    def scaled(model: onnx.ModelProto) -> None:
        attribute(named(model, "model.layers.3.post_attention_layernorm.RMSNorm"), "epsilon", 1e-3 * 4.0**-shift)

    failed = _failed(edited(folder, tmp_path / "scaled", scaled))
    assert "post_attention_layernorm.SimplifiedLayerNormalization: epsilon" in failed["epsilon"]
    assert f"expected {float(np.float32(1e-3))}" in failed["epsilon"]


def test_tables_of_the_other_kind(windowed_folder: Folders, tmp_path: Path) -> None:
    """Functions keep tables: a layer without a window that looks its positions up in the local ones."""

    def local(model: onnx.ModelProto) -> None:
        node = named(model, "model.layers.5.self_attn.Attention")
        node.input[6:8] = ["cos_cache_local", "sin_cache_local"]

    def same(model: onnx.ModelProto) -> None:
        first, second = (constant(model, f"sin_cache{suffix}") for suffix in ("", "_local"))
        second.CopyFrom(first)
        second.name = "sin_cache_local"

    folder = windowed_folder("gemma3", target="portable", keep_functions=True, **_FP16)
    failed = _failed(edited(folder, tmp_path / "local", local))
    assert "['cos_cache_local', 'sin_cache_local'], expected cos_cache, sin_cache" in failed["rotary embedding"]
    failed = _failed(edited(folder, tmp_path / "same", same))
    assert "sin_cache_local: 0.1246" in failed["rotary tables"]
    assert "expected 0.841471 for rope_theta 333.3" in failed["rotary tables"]
