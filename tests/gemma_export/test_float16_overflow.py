"""float16 that cannot overflow: bit-identical in float32, right where the plain export fails, measured as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import adapters
import numpy as np
import pytest
import torch
import transformers
from decoders import Graph, builtin_reference, reference_logits
from graphs import serialize

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.families import FAMILIES
from gemma_export.headroom import measure_headroom, probes_for
from gemma_export.layerwise import checkpoint_weights
from gemma_export.passes import RescaleResidual
from gemma_export.pipeline import build_semantic_graph, export, lower_graphs
from gemma_export.planning import ExportPlan, plan_export
from gemma_export.precision import WeightOptions
from gemma_export.request import ExportRequest
from gemma_runtime import read_manifest
from gemma_validation import measure_drift

# the built-in stream peaks at 102: times 2^15 at 3.3 million
_GROWTH = 2.0**15
_MEAN_KL = 1e-3


def tiny_graph(shift: int) -> Graph:
    """The built-in model in float32 with a rescaled stream, logits of every position."""
    plan = plan_export(ExportRequest(variant="tiny", logits="all"))
    model = build_semantic_graph(plan)
    if shift:
        RescaleResidual(shift)(model)
    # chunks of several rows
    (batched,) = [graph for graph in lower_graphs(plan, model) if graph.role == "batched"]
    return Graph(serialize(batched.model))


@pytest.fixture(scope="module")
def plain() -> Graph:
    return tiny_graph(0)


@pytest.mark.parametrize("shift", [1, 6, 13])
def test_float32_is_bit_identical(shift: int, plain: Graph) -> None:
    """Logits and cache: prefill, a chunk after it, decode steps, batches padded on either side."""
    scaled = tiny_graph(shift)
    ids = np.random.default_rng(shift).integers(108, 3072, (2, 24))
    for first, second in ((24, 24), (15, 9)):
        mask = np.ones_like(ids)
        mask[0, : 24 - first] = 0
        mask[1, second:] = 0
        pasts: list[list[np.ndarray] | None] = [None, None]
        for columns in (slice(0, 20), slice(20, 23), slice(23, 24)):
            seen = mask[:, : columns.stop]
            (found, pasts[0]), (expected, pasts[1]) = (
                graph.step(ids[:, columns], seen, past) for graph, past in zip((scaled, plain), pasts, strict=True)
            )
            for row in range(2):
                real = mask[row, columns] == 1
                assert found[row, real].tobytes() == expected[row, real].tobytes()
                for one, other in zip(pasts[0], pasts[1], strict=True):
                    length = int(seen[row].sum())
                    assert one[row, :, :length].tobytes() == other[row, :, :length].tobytes()


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with everything that writes to the stream times 2^15; its own table becomes the head.

    Norms take the factor out again, so the logits stay those of the built-in model up to the epsilon's weight.
    """
    root = tmp_path_factory.mktemp("overflow") / "model"
    model = builtin_reference()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    for name in state:
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            state[name] *= _GROWTH
    config = model.config
    config.tie_word_embeddings = False
    grown = transformers.GemmaForCausalLM(config)
    grown.load_state_dict(state)
    grown.save_pretrained(root)
    content = json.loads((BUILTIN_DIRECTORY / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**content, "tie_word_embeddings": False}))
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(BUILTIN_DIRECTORY / name, root / name)
    return root


def reference(checkpoint: Path) -> transformers.GemmaForCausalLM:
    return transformers.GemmaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def overflow_drift(checkpoint: Path, folder: Path, graph: str, **request: object) -> float:
    """Mean KL of an export against the float32 reference; infinite where the logits are not finite.

    Args:
        checkpoint: what to export.
        folder: where to.
        graph: the graph with logits of every position, relative to the folder.
        request: the export's options.
    """
    export(ExportRequest(checkpoint=checkpoint, output=folder, **request))
    plan = plan_export(ExportRequest(variant="tiny"))
    ids = np.array([next(p for p in probes_for(plan.checkpoint, plan.spec) if p.name == "code").token_ids])
    found, _ = Graph(folder / graph).step(ids, np.ones_like(ids))
    if not np.isfinite(found).all():
        return float("inf")
    return measure_drift(reference_logits(reference(checkpoint), ids), found).mean_kl


def test_stream_beyond_a_million_exports_to_float16(overflowing: Path, tmp_path: Path) -> None:
    drift = overflow_drift(overflowing, tmp_path / "auto", "onnx/model_fp16_all.onnx", precision="fp16")
    assert drift <= _MEAN_KL
    options = read_manifest(tmp_path / "auto").precision.options["residual_scale"]
    peaks = options["measured"]["peaks"]
    assert peaks["mlp_residual"]["peak"] > 1e6
    assert options["shift"] >= 6
    assert options["measured"]["headroom_bits"] >= 2
    off = overflow_drift(
        overflowing, tmp_path / "off", "onnx/model_fp16_all.onnx", precision="fp16", residual_scale="off"
    )
    assert off > 100 * _MEAN_KL


@pytest.mark.parametrize(
    ("scheme", "wide_suffix", "suffix"), [("int4", "_q4", "_q4f16"), ("int8", "_int8", "_int8f16")]
)
def test_integers_with_float16_activations_too(
    scheme: str, wide_suffix: str, suffix: str, overflowing: Path, tmp_path: Path
) -> None:
    """What float16 activations add to the integers' own drift; its reference are those with float32 activations."""
    weights = WeightOptions(scheme=scheme)
    wide = overflow_drift(overflowing, tmp_path / "wide", f"onnx/model{wide_suffix}_all.onnx", weights=weights)
    half = {"weights": weights, "precision": "fp16"}
    auto = overflow_drift(overflowing, tmp_path / "auto", f"onnx/model{suffix}_all.onnx", **half)
    assert auto <= wide + _MEAN_KL
    options = read_manifest(tmp_path / "auto").precision.options
    assert options["residual_scale"]["shift"] >= 6
    off = overflow_drift(overflowing, tmp_path / "off", f"onnx/model{suffix}_all.onnx", residual_scale="off", **half)
    assert off > 10 * wide


def measured_plan(checkpoint: Path | None) -> ExportPlan:
    if checkpoint is None:
        return plan_export(ExportRequest(variant="tiny", precision="fp16", residual_scale="measure"))
    return plan_export(ExportRequest(checkpoint=checkpoint, precision="fp16"))


@pytest.mark.parametrize("name", ["tiny", "overflowing"])
def test_measured_peak_is_what_transformers_shows(name: str, overflowing: Path) -> None:
    plan = measured_plan(None if name == "tiny" else overflowing)
    assert plan.checkpoint.source is not None
    headroom = measure_headroom(plan.checkpoint, plan.family, plan.spec, checkpoint_weights(plan.checkpoint.source))
    model = builtin_reference() if name == "tiny" else reference(overflowing)
    peaks = {"stream": 0.0, "geglu": 0.0}

    def look(kind: str, tensor: torch.Tensor) -> None:
        peaks[kind] = max(peaks[kind], float(tensor.abs().max()))

    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, inputs: look("stream", inputs[0]))
        layer.register_forward_hook(lambda _, inputs, output: look("stream", output))
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _, inputs: look("stream", inputs[0]))
        for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
            writer.register_forward_hook(lambda _, inputs, output: look("stream", output))
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: look("geglu", inputs[0]))
    with torch.no_grad():
        for probe in probes_for(plan.checkpoint, plan.spec):
            model(input_ids=torch.tensor([probe.token_ids]))
    assert headroom.stream.value == pytest.approx(peaks["stream"], rel=1e-4)
    assert headroom.peaks["mlp.down_proj.input"].value == pytest.approx(peaks["geglu"], rel=1e-4)
    fits = [k for k in range(17) if peaks["stream"] * 2.0**-k * 4 <= 65504]
    assert headroom.shift == fits[0]
    assert headroom.warnings() == []


def test_what_is_measured_is_the_model_with_its_adapter(tmp_path: Path) -> None:
    """An adapter of large numbers moves the peaks, and so the rescaling."""
    family = FAMILIES["gemma"]
    spec, _ = family.parse_config(json.loads((BUILTIN_DIRECTORY / "config.json").read_text()))
    weights = adapters.tensors(family.tensor_shapes(spec), kinds=("down_proj",))
    adapters.write(tmp_path / "lora", weights, target_modules=["down_proj"])
    options = {}
    for name, adapter in (("plain", None), ("merged", str(tmp_path / "lora"))):
        request = ExportRequest(
            variant="tiny", precision="fp16", residual_scale="measure", adapter=adapter, output=tmp_path / name
        )
        export(request)
        options[name] = read_manifest(tmp_path / name).precision.options["residual_scale"]
    peaks = {name: found["measured"]["peaks"]["mlp_residual"]["peak"] for name, found in options.items()}
    assert peaks["merged"] > 5 * peaks["plain"]
    bits = {name: found["measured"]["headroom_bits"] for name, found in options.items()}
    assert bits["merged"] < bits["plain"]


def test_auto_measures_a_known_model_with_an_adapter(tmp_path: Path) -> None:
    """What is known of the built-in model (2^-6) says nothing of a stream that the adapter moved past 10^7."""
    family = FAMILIES["gemma"]
    spec, _ = family.parse_config(json.loads((BUILTIN_DIRECTORY / "config.json").read_text()))
    kinds = ("down_proj", "o_proj")
    weights = adapters.tensors(family.tensor_shapes(spec), kinds=kinds)
    adapters.write(tmp_path / "lora", weights, target_modules=list(kinds), lora_alpha=200_000)
    ids = np.random.default_rng(0).integers(108, 3072, (1, 24))
    logits = {}
    for name, request in (("wide", {}), ("auto", {"precision": "fp16"})):
        graph = export(
            ExportRequest(
                variant="tiny", adapter=str(tmp_path / "lora"), logits="all", output=tmp_path / name, **request
            )
        ).plan.graphs[0]
        logits[name], _ = Graph(tmp_path / name / graph.file).step(ids, np.ones_like(ids))
    options = read_manifest(tmp_path / "auto").precision.options["residual_scale"]
    assert (options["reason"], options["shift"] > 6) == ("measured", True)
    assert np.isfinite(logits["auto"]).all()
    assert measure_drift(logits["wide"], logits["auto"]).mean_kl <= _MEAN_KL
