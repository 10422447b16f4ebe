"""Layers with norms behind their branches: a defect is found in the half of the layer that has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from graph_edits import attribute, constant, named
from local_references import layers_of

from gemma_export.precision import WeightOptions
from gemma_runtime.manifest import read_manifest
from gemma_validation.documents import Document
from gemma_validation.findings import Localisation
from gemma_validation.localise import localise
from gemma_validation.localise.streams import excerpts

Documents = tuple[Document, ...]
Changed = Callable[[Path, Callable[[onnx.ModelProto], None]], Path]

# the stream is stored times 2^-5
_FP16: dict[str, Any] = {"precision": "fp16", "residual_scale": "5"}


@pytest.fixture
def found(windowed_checkpoint: Callable[[str], Path], documents: Documents) -> Callable[[Path, str], Localisation]:
    return lambda folder, config: localise(
        folder, read_manifest(folder), layers_of(windowed_checkpoint(config)), documents, provider="cpu"
    )


@pytest.mark.parametrize("config", ["gemma2", "gemma3"])
def test_nothing_stands_out_in_a_good_export(
    config: str, windowed_folder: Callable[..., Path], found: Callable[[Path, str], Localisation]
) -> None:
    result = found(windowed_folder(config), config)
    assert result.culprit is None, result.message
    for point in result.points:
        assert point.cumulative < 1e-10
        assert point.injected is not None
        assert point.injected < 1e-10


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("gemma2", _FP16),
        ("gemma3", {**_FP16, "weights": WeightOptions(scheme="int4")}),
    ],
    ids=str,
)
def test_rescaled_and_quantised(
    config: str,
    options: dict[str, object],
    windowed_folder: Callable[..., Path],
    found: Callable[[Path, str], Localisation],
) -> None:
    """The stream is stored times 2^-k, which post-norms give it, and compared as what it stands for."""
    folder = windowed_folder(config, **options)
    assert read_manifest(folder).precision.options["residual_scale"]["shift"]
    result = found(folder, config)
    assert result.culprit is None, result.message
    assert 1e-10 < max(point.injected or 0.0 for point in result.points) < 0.15


def behind_attention(model: onnx.ModelProto) -> None:
    attribute(named(model, "model.layers.1.post_attention_layernorm.RMSNorm"), "epsilon", 300.0)


def before_mlp(model: onnx.ModelProto) -> None:
    attribute(named(model, "layers.2.attn_residual"), "epsilon", 300.0)


def behind_mlp(model: onnx.ModelProto) -> None:
    attribute(named(model, "model.layers.3.post_feedforward_layernorm.RMSNorm"), "epsilon", 300.0)


def softcap(model: onnx.ModelProto) -> None:
    constant(model, "decoder.softcap").raw_data = b"\x00\x00\x80\x40"


@pytest.mark.parametrize(
    ("defect", "culprit"),
    [
        (behind_attention, "layers.1.attn_residual"),
        (before_mlp, "layers.2.mlp_residual"),
        (behind_mlp, "layers.3.mlp_residual"),
        (softcap, "logits"),
    ],
)
def test_one_half_s_defect(
    defect: Callable[[onnx.ModelProto], None],
    culprit: str,
    windowed_folder: Callable[..., Path],
    found: Callable[[Path, str], Localisation],
    changed: Changed,
) -> None:
    result = found(changed(windowed_folder("gemma2"), defect), "gemma2")
    assert result.culprit == culprit, result.message
    assert "stands out" in result.message


def test_an_excerpt_goes_on_behind_the_window() -> None:
    """The longest document alone, where one is longer and memory allows it."""
    texts = [
        Document(slice=name, name=name, token_ids=tuple(range(length)))
        for name, length in (("code", 70), ("prose", 70), ("scripts", 70), ("long", 600), ("chat", 70))
    ]

    def sizes(**options: int) -> dict[str, int]:
        return {document.name: len(document.token_ids) for document in excerpts(texts, **options)}

    short = {"code": 32, "prose": 32, "scripts": 32, "long": 32}
    assert sizes() == short
    assert sizes(window=512, values=1000) == {"long": 544, "code": 32, "prose": 32, "scripts": 32}
    assert sizes(window=600, values=1000) == short
    # 544 positions of a million values are two gigabytes
    assert sizes(window=512, values=1_000_000) == short
