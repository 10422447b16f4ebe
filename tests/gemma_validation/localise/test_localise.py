"""Every point of the stream is compared, and a defect is found in the half of the layer that has it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from decoders import CONFIGS, reference_model, write_checkpoint
from local_references import layers_of

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_runtime.manifest import Manifest, read_manifest
from gemma_validation.documents import Document
from gemma_validation.errors import FolderUnreadableError, MismatchError, ProviderUnavailableError
from gemma_validation.findings import NOT_FINITE, Localisation
from gemma_validation.localise import localise
from gemma_validation.localise.points import stream_points
from gemma_validation.localise.streams import excerpts
from gemma_validation.mutations import DEFECTS

Documents = tuple[Document, ...]
Changed = Callable[[Path, Callable[[onnx.ModelProto], None]], Path]


def found(folder: Path, documents: Documents, manifest: Manifest | None = None) -> Localisation:
    manifest = read_manifest(folder) if manifest is None else manifest
    return localise(folder, manifest, layers_of(BUILTIN_DIRECTORY), documents, provider="cpu")


def node_of(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if output in node.output)


def set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    (attribute,) = (attribute for attribute in node.attribute if attribute.name == name)
    attribute.CopyFrom(onnx.helper.make_attribute(name, value))


def epsilon(model: onnx.ModelProto) -> None:
    """The norm before layer 1's MLP."""
    set_attribute(node_of(model, "layers.1.attn_residual"), "epsilon", 30.0)


def attention_scale(model: onnx.ModelProto) -> None:
    set_attribute(node_of(model, "present.2.key"), "scale", 0.02)


def swapped(model: onnx.ModelProto) -> None:
    """Down projections of layers 1 and 2."""
    first, second = (node_of(model, f"model.layers.{layer}.mlp.down_proj.Linear") for layer in (1, 2))
    for index in range(1, len(first.input)):
        first.input[index], second.input[index] = second.input[index], first.input[index]


def interleaved(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            set_attribute(node, "rotary_interleaved", 1)


def final_norm(model: onnx.ModelProto) -> None:
    set_attribute(node_of(model, "model.norm.RMSNorm"), "epsilon", 10.0)


def embedding_scale(model: onnx.ModelProto) -> None:
    """The factor is left out."""
    node = node_of(model, "model.embed_tokens.ScaledEmbedding")
    node.op_type = "Identity"
    del node.input[1:]


def test_nothing_stands_out_in_a_good_export(tiny_fp32: Path, documents: Documents) -> None:
    result = found(tiny_fp32, documents)
    assert [point.point for point in result.points] == [point.name for point in stream_points(4)]
    assert result.culprit is None
    assert result.message.startswith("no point stands out")
    for point in result.points:
        assert point.cumulative < 1e-10
        assert point.injected is not None
        assert point.injected < 1e-10
        # what a float16 export of it would have to fit, less its rescaling
        assert point.headroom_bits == pytest.approx(math.log2(65504 / point.peak))
    assert [point.layer for point in result.points[:3]] == [None, 0, 0]


def test_float16_and_its_headroom(tiny_fp16: Path, documents: Documents) -> None:
    """The stream is stored times 2^-6, and compared as what it stands for."""
    manifest = read_manifest(tiny_fp16)
    assert manifest.precision.options["residual_scale"]["shift"] == 6
    result = found(tiny_fp16, documents)
    assert result.culprit is None
    for point in result.points:
        assert point.cumulative < 1e-5
        assert point.headroom_bits == pytest.approx(math.log2(65504 / point.peak))
    # its embedding reaches 5, times 2^-6
    assert 0.05 < result.points[0].peak < 0.2
    assert result.points[-1].peak > 5


@pytest.mark.parametrize("folder", ["tiny_int4", "tiny_int8_dynamic", "tiny_qdq"])
def test_quantised_folders(folder: str, documents: Documents, request: pytest.FixtureRequest) -> None:
    result = found(request.getfixturevalue(folder), documents)
    assert result.culprit is None
    errors = {point.point: point.injected for point in result.points}
    assert 1e-5 < max(value for value in errors.values() if value is not None) < 0.1
    # the final norm is not quantised, whatever comes before it
    assert errors["norm"] is not None
    assert errors["norm"] < 1e-10


@pytest.mark.parametrize("folder", ["tiny_fp32", "tiny_fp16", "tiny_int4"])
@pytest.mark.parametrize(
    ("defect", "culprit", "words"),
    [
        (epsilon, "layers.1.mlp_residual", "the MLP half of layer 1"),
        (attention_scale, "layers.2.attn_residual", "the attention half of layer 2"),
        (swapped, None, "MLP half of layer 2"),
        (final_norm, "norm", "the final norm"),
        (embedding_scale, "embedding", "the embedding"),
    ],
)
def test_one_layer_s_defect(
    folder: str,
    defect: Callable[[onnx.ModelProto], None],
    culprit: str | None,
    words: str,
    documents: Documents,
    changed: Changed,
    request: pytest.FixtureRequest,
) -> None:
    result = found(changed(request.getfixturevalue(folder), defect), documents)
    assert words in result.message
    assert "stands out" in result.message
    # of two layers exchanged either may be the worse one
    assert result.culprit in ((culprit,) if culprit else ("layers.1.mlp_residual", "layers.2.mlp_residual"))


@pytest.mark.parametrize("folder", ["tiny_fp32", "tiny_int4"])
def test_a_defect_of_all_layers_is_no_layer_s(
    folder: str, documents: Documents, changed: Changed, request: pytest.FixtureRequest
) -> None:
    result = found(changed(request.getfixturevalue(folder), interleaved), documents)
    assert result.culprit is None
    assert "the attention half is off in" in result.message
    assert "what these layers share" in result.message


def test_later_layers_are_not_blamed(tiny_fp32: Path, documents: Documents, changed: Changed) -> None:
    """The stream is wrong from the defect on; what each other half adds is as before."""
    good, bad = found(tiny_fp32, documents), found(changed(tiny_fp32, epsilon), documents)
    for before, after in zip(good.points, bad.points, strict=True):
        if before.point == "layers.1.mlp_residual":
            assert after.injected is not None
            assert after.injected > 1e-5
        else:
            assert after.injected == pytest.approx(before.injected, rel=1e-3, abs=1e-13)
        reached = before.point in ("norm", "logits") or (before.layer or 0) > 1
        assert not reached or after.cumulative > 1e-7


def test_a_stream_that_float16_does_not_hold(tmp_path: Path, documents: Documents, export_grown: Path) -> None:
    """Times 2^15 without its rescaling: infinite, and NaN behind the next norm, so that the peak is the reference's."""
    checkpoint, folder = export_grown.parent / "checkpoint", tmp_path / "overflow"
    (defect,) = [defect for defect in DEFECTS if defect.name == "float16 overflow"]
    sound = localise(export_grown, read_manifest(export_grown), layers_of(checkpoint), documents, provider="cpu")
    assert all(point.headroom_bits is not None and point.headroom_bits > 0 for point in sound.points)
    assert "overflows" not in sound.message
    defect.inject(export_grown, folder)
    result = localise(folder, read_manifest(folder), layers_of(checkpoint), documents, provider="cpu")
    bits = {point.point: point.headroom_bits for point in result.points}
    peaks = {point.point: point.peak for point in result.points}
    shift = read_manifest(export_grown).precision.options["residual_scale"]["shift"]
    for point in sound.points[:-2]:
        # every value of the stream is 2^shift times what the sound folder stores
        assert peaks[point.point] == pytest.approx(point.peak * 2**shift, rel=1e-2)
        assert bits[point.point] == pytest.approx(math.log2(65504 / point.peak) - shift, abs=0.02)
    assert min(value for value in bits.values() if value is not None) < -1
    assert "float16 overflows from the" in result.message
    json.dumps(dataclasses.asdict(result), allow_nan=False)


def test_infinity_where_the_reference_is_small(tiny_fp16: Path, documents: Documents, changed: Changed) -> None:
    """The stream overflows by a defect of its own: as far as can be known it is half a unit too large."""

    def loud(model: onnx.ModelProto) -> None:
        (factor,) = [tensor for tensor in model.graph.initializer if tensor.name == named_scale(model)]
        factor.CopyFrom(onnx.numpy_helper.from_array(np.full(factor.dims, np.inf, np.float16), factor.name))

    result = found(changed(tiny_fp16, loud), documents)
    embedding = result.points[0]
    assert embedding.headroom_bits == pytest.approx(math.log2(65504 / 65520))
    assert result.message.endswith(
        "float16 overflows from the embedding on: values reach 1 times its largest number at the embedding"
    )


def named_scale(model: onnx.ModelProto) -> str:
    """The embedding's factor."""
    return node_of(model, "model.embed_tokens.ScaledEmbedding").input[1]


def test_values_that_are_not_finite(tiny_fp32: Path, documents: Documents, changed: Changed) -> None:
    def infinite(model: onnx.ModelProto) -> None:
        set_attribute(node_of(model, "present.2.key"), "scale", math.nan)

    result = found(changed(tiny_fp32, infinite), documents)
    by_name = {point.point: point for point in result.points}
    assert result.culprit == "layers.2.attn_residual"
    assert "not finite" in result.message
    assert by_name["layers.1.mlp_residual"].cumulative < 1e-10
    assert by_name["layers.2.attn_residual"].cumulative == NOT_FINITE
    assert by_name["logits"].cumulative == NOT_FINITE
    # the final norm of the reference's stream is as it was
    assert by_name["norm"].injected is not None
    assert by_name["norm"].injected < 1e-10
    json.dumps(dataclasses.asdict(result), allow_nan=False)


def test_a_graph_of_the_last_position_serves(tiny_fp32: Path, documents: Documents) -> None:
    manifest = read_manifest(tiny_fp32)
    main = dataclasses.replace(manifest, graphs=(manifest.graph("main"),))
    result = found(tiny_fp32, documents, main)
    assert result.culprit is None
    assert result.points[-1].cumulative < 1e-10


def test_the_folder_is_left_alone(tiny_int4: Path, documents: Documents, listing: Callable[[Path], str]) -> None:
    before = listing(tiny_int4)
    found(tiny_int4, documents)
    assert listing(tiny_int4) == before


def test_a_missing_point_is_named(tiny_fp32: Path, documents: Documents, changed: Changed) -> None:
    def renamed(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = ["stream" if name == "layers.2.mlp_residual" else name for name in names]

    with pytest.raises(FolderUnreadableError, match=r"model_all\.onnx computes no value 'layers\.2\.mlp_residual'"):
        found(changed(tiny_fp32, renamed), documents)


def test_a_graph_that_is_none(tiny_fp32: Path, documents: Documents, changed: Changed) -> None:
    folder = changed(tiny_fp32, lambda model: None)
    (folder / "onnx" / "model_all.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(FolderUnreadableError, match=r"model_all\.onnx is no graph that can be read"):
        found(folder, documents)


def test_a_graph_that_onnxruntime_refuses(tiny_fp32: Path, documents: Documents, changed: Changed) -> None:
    def unknown(model: onnx.ModelProto) -> None:
        node_of(model, "model.layers.1.mlp.Gelu").op_type = "NoSuchOperator"

    with pytest.raises(FolderUnreadableError, match=r"cannot load onnx/model_all\.onnx"):
        found(changed(tiny_fp32, unknown), documents)


def test_another_checkpoint(tiny_fp32: Path, documents: Documents, tmp_path: Path) -> None:
    write_checkpoint(reference_model(CONFIGS["gqa"]), tmp_path, CONFIGS["gqa"], BUILTIN_DIRECTORY)
    with pytest.raises(MismatchError, match=r"has 4 layers and 3072 tokens, .* has 3 and 3072"):
        localise(tiny_fp32, read_manifest(tiny_fp32), layers_of(tmp_path), documents, provider="cpu")


def test_a_provider_that_is_not_there(tiny_fp32: Path, documents: Documents) -> None:
    import onnxruntime

    if "DmlExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("DirectML is installed")
    with pytest.raises(ProviderUnavailableError, match="directml"):
        localise(tiny_fp32, read_manifest(tiny_fp32), layers_of(BUILTIN_DIRECTORY), documents, provider="directml")


def test_excerpts_are_few_and_of_all_slices() -> None:
    documents = [
        Document(slice=name, name=f"{name} {index}", token_ids=tuple(range(100)))
        for name in ("code", "prose")
        for index in range(5)
    ]
    chosen = excerpts(documents)
    assert [document.name for document in chosen] == ["code 0", "prose 0", "code 1", "code 2"]
    assert {document.token_ids for document in chosen} == {tuple(range(32))}
