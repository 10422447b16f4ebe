"""Gemma 2 and 3 in every precision: the rescaled stream through their post-norms, and quantised weights and caches."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
import torch
from decoders import Graph, reference_logits
from graphs import serialize
from windowed_decoders import WINDOWED_CONFIGS, windowed_reference, write_windowed_checkpoint

from gemma_export import ops
from gemma_export.calibration.batches import measured_batches
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.errors import NonFiniteError
from gemma_export.headroom import probes_for
from gemma_export.layerwise import LayerwiseRun, checkpoint_weights, reference_stack
from gemma_export.passes import RescaleResidual
from gemma_export.pipeline import ExportRequest, build_semantic_graph, export, lower_graphs
from gemma_export.planning import plan_export
from gemma_export.precision import WeightOptions
from gemma_runtime import Gemma, read_manifest
from gemma_validation import measure_drift, widen_bfloat16

# four and five layers, tied and untied, with and without norms of query and key heads
_FAMILIES = ("gemma2", "gemma3 nested")
# of the table, which float16 stores as it is, and of the gains behind each branch: the stream peaks beyond a million
_TABLE_GROWTH, _GAIN_GROWTH = 2.0**14, 2.0**17
_POST_NORMS = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
_MEAN_KL = 1e-3
# of 60 tokens: a prompt longer than any window, then chunks, then single tokens; room behind a window
_PROMPT, _SINGLE, _CHUNK, _SLACK = 24, 40, 4, 3


class Subject:
    """A reference model, its checkpoint, and its logits of two rows of tokens, several windows long."""

    def __init__(self, model: Any, root: Path, config: dict[str, Any]) -> None:
        self.model = model
        self.checkpoint = write_windowed_checkpoint(model, root, config, BUILTIN_DIRECTORY)
        self.ids = np.random.default_rng(1).integers(108, 3072, (2, 60))
        self.expected = reference_logits(model, self.ids)
        self.window = int(config["sliding_window"])

    def export(self, output: Path, **request: Any) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return export(ExportRequest(checkpoint=self.checkpoint, output=output, **request)).folder.directory

    def logits(self, folder: Path) -> np.ndarray:
        manifest = read_manifest(folder)
        graph: Path | bytes = folder / manifest.graph("all").file
        if manifest.precision.activation_dtype == "bfloat16":
            # the CPU has no such kernels: rounded weights, float32 arithmetic
            wide = widen_bfloat16(ir.load(graph))
            ir.external_data.load_to_model(wide)
            graph = ir.to_proto(wide).SerializeToString()
        return Graph(graph).step(self.ids, np.ones_like(self.ids))[0]

    def runtime_logits(self, folder: Path, windowed: str) -> np.ndarray:
        """Of the first row by the runtime's own loop: a prompt past the window, chunks, then token by token.

        Args:
            folder: exported.
            windowed: "on" or "off".

        Returns:
            float32 [positions from _PROMPT - 1 on, vocab_size].
        """
        model, ids = Gemma(folder, windowed=windowed, threads=1), self.ids[0].tolist()
        sequence = model.sequence()
        rows = [sequence.extend(ids[:_PROMPT])[-1:].copy()]  # type: ignore[index]
        for start in range(_PROMPT, _SINGLE, _CHUNK):
            rows.append(sequence.step(ids[start : start + _CHUNK]).copy())
        rows += [sequence.step([token]).copy() for token in ids[_SINGLE:]]
        if windowed == "on":
            held = {buffer.shape[2] for _, _, buffer in sequence.state.named()}
            assert min(held) == self.window + _SLACK < _PROMPT < max(held)
        return np.concatenate(rows)


@pytest.fixture(scope="module", params=_FAMILIES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    config = WINDOWED_CONFIGS[request.param]
    return Subject(windowed_reference(config), tmp_path_factory.mktemp("subject") / "model", config)


def test_the_rescaled_stream_is_bit_identical_in_float32(subject: Subject) -> None:
    """Logits and cache: prefill past the window, a chunk after it, a decode step, padded on either side."""
    plan = plan_export(ExportRequest(checkpoint=subject.checkpoint, logits="all"))
    plain = build_semantic_graph(plan)
    scaled = [plain.clone(), plain.clone()]
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
    """What is added to the stream times powers of two, table and gains of the post-norms; a head of its own."""
    config = {**WINDOWED_CONFIGS[request.param], "tie_word_embeddings": False}
    model = windowed_reference(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("embed_tokens.weight"):
                tensor *= _TABLE_GROWTH
            elif name.endswith(_POST_NORMS):
                tensor.copy_((1 + tensor) * _GAIN_GROWTH - 1)
    return Subject(model, tmp_path_factory.mktemp("overflow") / "model", config)


def test_a_stream_beyond_a_million_exports_to_float16(overflowing: Subject, tmp_path: Path) -> None:
    folder = overflowing.export(tmp_path / "auto", precision="fp16")
    logits = overflowing.logits(folder)
    assert np.isfinite(logits).all()
    assert measure_drift(overflowing.expected, logits).mean_kl <= _MEAN_KL
    options = read_manifest(folder).precision.options["residual_scale"]
    assert options["reason"] == "measured"
    assert options["measured"]["headroom_bits"] >= 2
    peaks = options["measured"]["peaks"]
    stream, before_norm = reference_peaks(overflowing)
    assert stream > 1e6
    # four digits are kept
    assert max(peak["peak"] for peak in peaks.values() if peak["scaled"]) == pytest.approx(stream, rel=1e-3)
    # no rescaling reaches what a norm reads before it is added
    assert not peaks["self_attn.o_proj.output"]["scaled"]
    assert peaks["self_attn.o_proj.output"]["peak"] == pytest.approx(before_norm, rel=1e-3)
    with pytest.raises(NonFiniteError, match="layernorm"):
        overflowing.export(tmp_path / "off", precision="fp16", residual_scale="off")


def reference_peaks(subject: Subject) -> tuple[float, float]:
    """Of the stream with what is added to it, and of o_proj's output, in transformers on the probe prompts."""
    plan = plan_export(ExportRequest(checkpoint=subject.checkpoint, precision="fp16"))
    peaks = {"stream": 0.0, "o_proj": 0.0}

    def look(kind: str, tensor: torch.Tensor) -> None:
        peaks[kind] = max(peaks[kind], float(tensor.abs().max()))

    handles = []
    for layer in subject.model.model.layers:
        norms = [layer.get_submodule(name.removesuffix(".weight")) for name in _POST_NORMS]
        for module in (layer, *norms):
            handles.append(module.register_forward_hook(lambda _, inputs, output: look("stream", output)))
        for module in (layer, layer.pre_feedforward_layernorm):
            handles.append(module.register_forward_pre_hook(lambda _, inputs: look("stream", inputs[0])))
        handles.append(layer.self_attn.o_proj.register_forward_hook(lambda _, inputs, output: look("o_proj", output)))
    with torch.no_grad():
        for probe in probes_for(plan.checkpoint, plan.spec):
            subject.model(input_ids=torch.tensor([probe.token_ids]))
    for handle in handles:
        handle.remove()
    return peaks["stream"], peaks["o_proj"]


def test_a_layerwise_run_is_the_reference(subject: Subject) -> None:
    """What calibration, headroom and --max-kl run, past the window; softcaps are left to who reads the logits."""
    plan = plan_export(ExportRequest(checkpoint=subject.checkpoint))
    assert plan.checkpoint.source is not None
    stack = reference_stack(plan.family, plan.spec, positions=60)
    run = LayerwiseRun(stack, checkpoint_weights(plan.checkpoint.source), [torch.tensor(subject.ids)])
    for _ in run.layers():
        pass
    logits = torch.cat([block.clone() for _, _, block in run.head()], dim=-1)
    if stack.final_softcap:
        logits = ops.soft_cap(logits, cap=stack.final_softcap)
    found = logits.numpy()
    assert np.abs(found - subject.expected).max() <= tolerances.FP32_LOGITS * subject.expected.std()


_INT4, _INT8 = WeightOptions(scheme="int4"), WeightOptions(scheme="int8")
_QDQ4, _QDQ8 = WeightOptions(scheme="int4", format="qdq"), WeightOptions(scheme="int8", format="qdq")
_GPTQ = WeightOptions(scheme="int4", quantiser="gptq")
_DYNAMIC, _AWARE = WeightOptions(scheme="int8-dynamic"), WeightOptions(scheme="int4", activation_aware=True)
_KL4, _KL8 = tolerances.RANDOM_INT4_MEAN_KL, tolerances.RANDOM_INT8_MEAN_KL
_KL_CACHE = tolerances.RANDOM_INT8_CACHE_MEAN_KL
_HALF, _BRAIN, _STANDARD = {"precision": "fp16"}, {"precision": "bf16"}, {"target": "portable"}
# (configuration, what is asked for, bound of the mean KL)
_EXPORTS: dict[str, tuple[str, dict[str, Any], float]] = {
    "gemma2 fp16": ("gemma2", _HALF, tolerances.FP16_MEAN_KL),
    "gemma2 bf16": ("gemma2", _BRAIN, tolerances.RANDOM_BF16_WEIGHTS_MEAN_KL),
    "gemma2 int4 fp16": ("gemma2", {"weights": _INT4, **_HALF}, _KL4),
    "gemma2 int4 bf16": ("gemma2", {"weights": _INT4, **_BRAIN}, _KL4),
    "gemma2 int4 qdq": ("gemma2", {"weights": _QDQ4}, _KL4),
    "gemma2 int4 portable": ("gemma2", {"weights": _INT4, **_STANDARD}, _KL4),
    "gemma2 int8": ("gemma2", {"weights": _INT8}, _KL8),
    "gemma2 int8 portable fp16": ("gemma2", {"weights": _INT8, **_STANDARD, **_HALF}, _KL8),
    "gemma2 gptq": ("gemma2", {"weights": _GPTQ}, _KL4),
    "gemma2 cache": ("gemma2", {"kv_cache": "int8"}, _KL_CACHE),
    "gemma3 fp16": ("gemma3 nested", _HALF, tolerances.FP16_MEAN_KL),
    "gemma3 bf16": ("gemma3 nested", _BRAIN, tolerances.RANDOM_BF16_WEIGHTS_MEAN_KL),
    "gemma3 int4": ("gemma3 nested", {"weights": _INT4}, _KL4),
    "gemma3 int4 portable": ("gemma3 nested", {"weights": _INT4, **_STANDARD}, _KL4),
    "gemma3 int8 bf16": ("gemma3 nested", {"weights": _INT8, **_BRAIN}, _KL8),
    "gemma3 int8 qdq fp16": ("gemma3 nested", {"weights": _QDQ8, **_HALF}, _KL8),
    "gemma3 int8 portable": ("gemma3 nested", {"weights": _INT8, **_STANDARD}, _KL8),
    "gemma3 int8-dynamic": ("gemma3 nested", {"weights": _DYNAMIC}, _KL8),
    "gemma3 activation-aware": ("gemma3 nested", {"weights": _AWARE}, _KL4),
    "gemma3 cache fp16": ("gemma3 nested", {"kv_cache": "int8", **_HALF}, _KL_CACHE),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibration in seconds: several windows of source text."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(Path(__file__).read_text(encoding="utf-8")[:2500], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    root = tmp_path_factory.mktemp("subjects")
    return {
        name: Subject(windowed_reference(WINDOWED_CONFIGS[name]), root / name.split()[0], WINDOWED_CONFIGS[name])
        for name in _FAMILIES
    }


@pytest.mark.parametrize("name", list(_EXPORTS))
def test_exports_stay_near_in_every_precision(
    name: str, subjects: dict[str, Subject], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the graph of all positions, and past the window by the runtime, whose windowed twin gives the same numbers."""
    config, request, bound = _EXPORTS[name]
    calibrated = "gptq" in name or "aware" in name or "dynamic" in name or "cache" in name
    subject = subjects[config]
    folder = subject.export(tmp_path / "out", **request, calibration=text if calibrated else None)
    assert 0 < measure_drift(subject.expected, subject.logits(folder)).mean_kl <= bound
    manifest = read_manifest(folder)
    if manifest.precision.activation_dtype == "bfloat16":
        return
    # the runtime's own room is longer than the text
    monkeypatch.setattr("gemma_runtime.state.capacity_for", lambda window, device: window + _SLACK)
    expected = subject.expected[:1, _PROMPT - 1 :]
    whole = subject.runtime_logits(folder, "off")
    assert 0 < measure_drift(expected, whole[None]).mean_kl <= bound
    assert any(graph.windowed for graph in manifest.graphs) == (manifest.target == "ort")
    if manifest.target == "ort":
        found = subject.runtime_logits(folder, "on")
        assert 0 < measure_drift(expected, found[None]).mean_kl <= bound
        rounding = tolerances.FP16_LOGITS if "weights" not in request else tolerances.INT8_DYNAMIC_REORDERED
        assert np.abs(found - whole).max() <= rounding * whole.std()


@pytest.mark.parametrize("config", _FAMILIES)
def test_the_bound_of_max_kl_is_measured_as_onnxruntime_computes(
    config: str, subjects: dict[str, Subject], text: Path, tmp_path: Path
) -> None:
    subject = subjects[config]
    asked = ExportRequest(
        checkpoint=subject.checkpoint, weights=_INT4, max_kl=0.05, calibration=text, output=tmp_path / "out"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = export(asked)
    assert result.mixed is not None
    assert 0 < result.mixed.kl <= 0.05
    graph = Graph(result.folder.directory / read_manifest(result.folder.directory).graph("all").file)
    total = count = 0.0
    for batch in measured_batches(result.plan.checkpoint, result.plan.spec, result.plan.calibration):
        ids = batch.numpy()
        found, _ = graph.step(ids, np.ones_like(ids))
        total += ids.size * measure_drift(reference_logits(subject.model, ids), found).mean_kl
        count += ids.size
    assert total / count == pytest.approx(result.mixed.kl, rel=tolerances.MEASURED_KL)
