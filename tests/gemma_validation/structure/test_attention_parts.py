"""Attention that is written out for DirectML: silent on good folders, and each part that is wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_edits import attribute, constant, edited, named, nodes_of
from reference_exports import opens, structure_of

from gemma_runtime.manifest import read_manifest
from gemma_validation.artifact import ArtifactRunner
from gemma_validation.findings import Check
from gemma_validation.invariances import check_invariances, windows

Folders = Callable[..., Path]
Edit = Callable[[onnx.ModelProto], None]

# the stream is stored times 2^-5
_FP16: dict[str, Any] = {"precision": "fp16", "residual_scale": "5"}
# of the edits: a layer with a window, between two without
_OWN = "model.layers.2.self_attn"


def _failed(folder: Path) -> dict[str, str]:
    checks = structure_of(folder)
    return {check.name: check.message for check in checks if check.outcome != "passed"}


@pytest.fixture(scope="module")
def folders(windowed_folder: Folders) -> Folders:
    return lambda config, **options: windowed_folder(config, target="directml", **options)


# with softcaps and without, every number of key-value heads, layers that keep the kernel and none
@pytest.mark.parametrize(
    ("config", "options"),
    [("gemma2", {}), ("gemma2 types", _FP16), ("gemma3", _FP16), ("gemma3 nested", {})],
    ids=str,
)
def test_a_good_folder_passes_everything(config: str, options: dict[str, Any], folders: Folders) -> None:
    assert _failed(folders(config, **options)) == {}


def _other_number(model: onnx.ModelProto, name: str, number: np.generic) -> None:
    constant(model, name).raw_data = number.tobytes()


def _softcap(model: onnx.ModelProto) -> None:
    _other_number(model, "attention.softcap_3.0", np.float32(4))


def _no_softcap(model: onnx.ModelProto) -> None:
    named(model, f"{_OWN}.by_token").input[0] = f"{_OWN}.products"


def _half_softcap(model: onnx.ModelProto) -> None:
    """Bent, but not brought back to size."""
    named(model, f"{_OWN}.by_token").input[0] = f"{_OWN}.bent"


def _final_softcap(model: onnx.ModelProto) -> None:
    named(model, f"{_OWN}.capped").input[1] = "decoder.softcap"


def _window(model: onnx.ModelProto) -> None:
    _other_number(model, "attention.window_9", np.int64(10))


def _including(model: onnx.ModelProto) -> None:
    """Distances of the window's size too."""
    named(model, named(model, "attention.visible_window_9").input[1]).op_type = "LessOrEqual"


def _other_mask(model: onnx.ModelProto) -> None:
    named(model, f"{_OWN}.seen").input[0] = "attention.visible"


def _strict_mask(model: onnx.ModelProto) -> None:
    """Not a token's own column."""
    named(model, "attention.visible").op_type = "Less"


def _swapped_mask(model: onnx.ModelProto) -> None:
    """Columns from a token's position on."""
    node = named(model, "attention.visible")
    node.input[0], node.input[1] = node.input[1], node.input[0]


def _seen_where_hidden(model: onnx.ModelProto) -> None:
    node = named(model, f"{_OWN}.seen")
    node.input[1], node.input[2] = node.input[2], node.input[1]


def _lowest(model: onnx.ModelProto) -> None:
    _other_number(model, "attention.lowest", np.float32(-5))


def _alpha(model: onnx.ModelProto) -> None:
    attribute(named(model, f"{_OWN}.products"), "alpha", 32**-0.5)


def _no_alpha(model: onnx.ModelProto) -> None:
    del named(model, f"{_OWN}.products").attribute[:]


def _scaled_values(model: onnx.ModelProto) -> None:
    attribute(named(model, f"{_OWN}.mixed"), "alpha", 2.0)


def _heads(model: onnx.ModelProto) -> None:
    """Queries in the shape of keys."""
    named(model, f"{_OWN}.query_groups").input[1] = "constant.[0,0,2,32]"


def _order(model: onnx.ModelProto) -> None:
    attribute(named(model, f"{_OWN}.mixed_heads"), "perm", [0, 1, 2, 3])


def _columns(model: onnx.ModelProto) -> None:
    attribute(named(model, f"{_OWN}.weights"), "axis", 2)


def _not_rotated(model: onnx.ModelProto) -> None:
    node = named(model, f"{_OWN}.key_split")
    node.input[0] = named(model, node.input[0]).input[0]


def _values_of_keys(model: onnx.ModelProto) -> None:
    node = named(model, f"{_OWN}.value_split")
    node.input[0] = named(model, f"{_OWN}.key_rotary").input[0]


def _other_layer(model: onnx.ModelProto) -> None:
    named(model, f"{_OWN}.key_both").input[0] = "past_key_values.0.key"


def _new_first(model: onnx.ModelProto) -> None:
    node = named(model, f"{_OWN}.value_both")
    node.input[0], node.input[1] = node.input[1], node.input[0]


def _other_present(model: onnx.ModelProto) -> None:
    named(model, f"{_OWN}.mixed").input[1] = "present.1.value"


def _rows_as_they_stand(model: onnx.ModelProto) -> None:
    """The cache keeps the mask's columns: right as long as no row is padded."""
    node = named(model, "present.2.key")
    node.op_type = "Identity"
    del node.input[1:], node.attribute[:]


@pytest.mark.parametrize(
    ("edit", "check", "told"),
    [
        (_softcap, "attention", "model.layers.0.self_attn.shares.Div: input 1 is 4.0, expected 3.0"),
        (_no_softcap, "attention", f"{_OWN}.by_token.Reshape: input 0 is {_OWN}.products, expected {_OWN}.capped"),
        (_half_softcap, "attention", f"input 0 is {_OWN}.bent, expected {_OWN}.capped"),
        (_final_softcap, "attention", f"{_OWN}.capped.Mul: input 1 is 5.0, expected 3.0"),
        (_window, "attention", "model.layers.0.self_attn.seen.Where: window is 10, expected 9"),
        (_including, "attention", "model.layers.0.self_attn.seen.Where: window is 10, expected 9"),
        (_other_mask, "attention", f"{_OWN}.seen.Where: window is 0, expected 9"),
        (_other_mask, "caches", "input 0 is attention.visible, expected attention.visible_window_9"),
        (_strict_mask, "attention", "its mask attention.visible_window_9 is not of columns up to a token's position"),
        (_swapped_mask, "attention", "its mask attention.visible_window_9 is not of columns up to a token's position"),
        (_seen_where_hidden, "attention", f"{_OWN}.seen.Where: input 1 is attention.lowest, expected {_OWN}.by_token"),
        (_lowest, "attention", "model.layers.0.self_attn.seen.Where: input 2 is -5.0, expected -3.40282"),
        (_alpha, "attention", f"{_OWN}.products.FusedMatMul: alpha is 0.1767"),
        (_no_alpha, "attention", f"{_OWN}.products.FusedMatMul: transB is 0, expected 1"),
        (_scaled_values, "attention", f"{_OWN}.mixed.FusedMatMul: alpha is 2.0, expected 1.0"),
        (_heads, "attention", f"{_OWN}.query_groups.Reshape: input 1 is (0, 0, 2, 32), expected (0, 0, 2, 64)"),
        (_order, "attention", f"{_OWN}.mixed_heads.Transpose: perm is"),
        (_columns, "attention", f"{_OWN}.weights.Softmax: axis is 2, expected -1"),
        (_not_rotated, "attention", f"expected {_OWN}.key_rotary"),
        (_values_of_keys, "modules", f"{_OWN}.value_split.Reshape: reads {_OWN}.k"),
        (
            _other_layer,
            "caches",
            f"{_OWN}.key_both.Concat: input 0 is past_key_values.0.key, expected past",
        ),
        (_new_first, "caches", f"{_OWN}.value_both.Concat: input 0 is {_OWN}.value_heads, expected past_key_values.2"),
        (
            _other_present,
            "attention",
            f"{_OWN}.mixed.FusedMatMul: input 1 is present.1.value, expected present.2.",
        ),
        (_rows_as_they_stand, "caches", "present.2.key is computed by Identity, expected GatherND"),
    ],
)
def test_an_edited_part_is_found(edit: Edit, check: str, told: str, folders: Folders, tmp_path: Path) -> None:
    failed = _failed(edited(folders("gemma2"), tmp_path / "edited", edit))
    assert told in failed[check]


def test_a_softmax_in_float16(folders: Folders, tmp_path: Path) -> None:
    def narrow(model: onnx.ModelProto) -> None:
        attribute(named(model, f"{_OWN}.products_float32"), "to", onnx.TensorProto.FLOAT16)

    failed = _failed(edited(folders("gemma2 types", **_FP16), tmp_path / "edited", narrow))
    assert f"{_OWN}.products_float32.Cast: to is 10, expected 1" in failed["attention"]


def test_weights_of_a_projection_are_still_looked_at(folders: Folders, tmp_path: Path) -> None:
    """The one that attention's own products stand beside."""

    def scaled(model: onnx.ModelProto) -> None:
        attribute(named(model, f"{_OWN}.o_proj.Linear"), "alpha", 0.5)

    failed = _failed(edited(folders("gemma2"), tmp_path / "edited", scaled))
    assert f"{_OWN}.o_proj.FusedMatMul: alpha is 0.5, expected 1.0" in failed["products"]


def test_only_layers_that_see_everything_keep_the_kernel(folders: Folders, tmp_path: Path) -> None:
    def moved(model: onnx.ModelProto) -> None:
        (node,) = nodes_of(model, "GroupQueryAttention")
        node.name = node.name.replace("layers.1.", "layers.0.")

    def windowed(model: onnx.ModelProto) -> None:
        attribute(nodes_of(model, "GroupQueryAttention")[0], "local_window_size", 11)

    folder = folders("gemma3 nested")
    assert "attention of layers [0], expected [1]" in _failed(edited(folder, tmp_path / "moved", moved))["attention"]
    failed = _failed(edited(folder, tmp_path / "windowed", windowed))
    assert "model.layers.1.self_attn.GroupQueryAttention: window is 11, expected 0" in failed["attention"]


def test_which_cached_positions_a_layer_reads(folders: Folders, tmp_path: Path) -> None:
    """Windows are those of the masks; a mask that says another number than its name is seen in what is read."""

    def cached(folder: Path) -> Check:
        checks = check_invariances(folder, read_manifest(folder), [], opened=opens(folder), suite="quick")
        return next(check for check in checks if check.name == "cached positions")

    folder, manifest = folders("gemma2"), read_manifest(folders("gemma2"))
    with ArtifactRunner(folder, manifest) as runner:
        assert windows.layer_windows(folder, runner.graph) == {0: 9, 1: 0, 2: 9, 3: 0, 4: 9}
    assert cached(folder).outcome == "passed", cached(folder).message
    wrong = cached(edited(folder, tmp_path / "edited", _window))
    assert wrong.message == "layer 0 reads position 15 of 24, outside its window of 9"
