"""Gemma 2 and 3 in every precision: the rescaled stream through their post-norms, and quantised weights and caches."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from decoders import Graph, reference_logits
from graphs import serialize
from windowed_decoders import WINDOWED_CONFIGS, windowed_reference, write_windowed_checkpoint

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.errors import NonFiniteError
from gemma_export.passes import RescaleResidual
from gemma_export.pipeline import ExportRequest, build_semantic_graph, export, lower_graphs
from gemma_export.planning import plan_export
from gemma_export.precision import WeightOptions
from gemma_runtime import Gemma, read_manifest
from gemma_validation import measure_drift

# four and five layers, tied and untied, with and without norms of query and key heads
_FAMILIES = ("gemma2", "gemma3 nested")
_GROWTH = 2.0**15
_POST_NORMS = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
_MEAN_KL = 1e-3


class Subject:
    """A reference model, its checkpoint, and its logits of two rows of tokens, several windows long."""

    def __init__(self, model: Any, root: Path, config: dict[str, Any]) -> None:
        self.model = model
        self.checkpoint = write_windowed_checkpoint(model, root, config, BUILTIN_DIRECTORY)
        self.ids = np.random.default_rng(1).integers(108, 3072, (2, 60))
        self.expected = reference_logits(model, self.ids)

    def export(self, output: Path, **request: Any) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return export(ExportRequest(checkpoint=self.checkpoint, output=output, **request)).folder.directory

    def logits(self, folder: Path) -> np.ndarray:
        graph = Graph(folder / read_manifest(folder).graph("all").file)
        return graph.step(self.ids, np.ones_like(self.ids))[0]


@pytest.fixture(scope="module", params=_FAMILIES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    config = WINDOWED_CONFIGS[request.param]
    return Subject(windowed_reference(config), tmp_path_factory.mktemp("subject") / "model", config)


def test_the_rescaled_stream_is_bit_identical_in_float32(subject: Subject) -> None:
    """Logits and cache: prefill past the window, a chunk after it, a decode step, padded on either side."""
    plan = plan_export(ExportRequest(checkpoint=subject.checkpoint, logits="all"))
    plain, *scaled = (build_semantic_graph(plan) for _ in range(3))
    for model, shift in zip(scaled, (1, 13), strict=True):
        RescaleResidual(shift)(model)
    graphs = []
    for model in (plain, *scaled):
        (batched,) = [graph for graph in lower_graphs(plan, model) if graph.role == "batched"]
        graphs.append(Graph(serialize(batched.model)))
    mask = np.ones_like(subject.ids)
    mask[0, :7], mask[1, 51:] = 0, 0
    pasts: list[list[np.ndarray] | None] = [None] * 3
    for columns in (slice(0, 40), slice(40, 51), slice(51, 52)):
        found = [
            graph.step(subject.ids[:, columns], mask[:, : columns.stop], past)
            for graph, past in zip(graphs, pasts, strict=True)
        ]
        pasts = [past for _, past in found]
        real = mask[:, columns] == 1
        for logits, past in found[1:]:
            assert logits[real].tobytes() == found[0][0][real].tobytes()
            for one, other in zip(past, found[0][1], strict=True):
                for row, length in enumerate(mask[:, : columns.stop].sum(1)):
                    assert one[row, :, :length].tobytes() == other[row, :, :length].tobytes()


@pytest.fixture(scope="module", params=_FAMILIES)
def overflowing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """All that is added to the stream times 2^15, table and gains of the post-norms; a head of its own."""
    config = {**WINDOWED_CONFIGS[request.param], "tie_word_embeddings": False}
    model = windowed_reference(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("embed_tokens.weight"):
                tensor *= _GROWTH
            elif name.endswith(_POST_NORMS):
                tensor.copy_((1 + tensor) * _GROWTH - 1)
    return Subject(model, tmp_path_factory.mktemp("overflow") / "model", config)


def test_a_stream_beyond_a_million_exports_to_float16(overflowing: Subject, tmp_path: Path) -> None:
    folder = overflowing.export(tmp_path / "auto", precision="fp16")
    logits = overflowing.logits(folder)
    assert np.isfinite(logits).all()
    assert measure_drift(overflowing.expected, logits).mean_kl <= _MEAN_KL
    options = read_manifest(folder).precision.options["residual_scale"]
    assert options["reason"] == "measured"
    assert options["measured"]["peaks"]["mlp_residual"]["peak"] > 1e6
    assert options["measured"]["headroom_bits"] >= 2
    with pytest.raises(NonFiniteError, match="layernorm"):
        overflowing.export(tmp_path / "off", precision="fp16", residual_scale="off")


# what is asked for -> 
_OPTIONS: dict[str, dict[str, Any]] = {
    "int4": {"weights": WeightOptions(scheme="int4")},
    "int4 fp16": {"weights": WeightOptions(scheme="int4"), "precision": "fp16"},
    "int8": {"weights": WeightOptions(scheme="int8")},
    "int8-dynamic": {"weights": WeightOptions(scheme="int8-dynamic")},
    "gptq": {"weights": WeightOptions(scheme="int4", quantiser="gptq")},
    "activation-aware": {"weights": WeightOptions(scheme="int4", activation_aware=True)},
    "int8 cache": {"kv_cache": "int8"},
}
