"""`--activation-aware`: less drift on text that was not calibrated on, for every quantiser and wherever weights are."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
from decoders import Graph, builtin_reference, reference_logits
from graphs import serialize

from gemma_export.artifact import verify_folder
from gemma_export.calibration.batches import measured_batches
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, build_semantic_graph, export, lower_graphs
from gemma_export.planning import plan_export
from gemma_export.precision import WeightOptions
from gemma_export.settling import settle_channel_scales, settle_precision
from gemma_runtime import Gemma, read_manifest
from gemma_runtime.tokenizer import load_tokenizer
from gemma_validation import measure_drift

_PACKAGE = Path(__file__).parents[2] / "gemma_export"
# this project's own sources: written after the model was trained
_TEXTS = ("planning.py", "weights.py", "layerwise/run.py", "passes/semantic_nodes.py")
_LAYOUTS = {
    "search, block 128": WeightOptions(scheme="int4"),
    "rtn, block 32 symmetric": WeightOptions(scheme="int4", block_size=32, symmetric=True, quantiser="rtn"),
}


@functools.cache
def _traced() -> ir.Model:
    return build_semantic_graph(plan_export(ExportRequest(variant="tiny")))


@functools.cache
def _held_out() -> tuple[np.ndarray, np.ndarray]:
    """Token ids [4, 512], and the reference's logits."""
    tokenizer = load_tokenizer(BUILTIN_DIRECTORY)
    ids = np.array([tokenizer.encode((_PACKAGE / name).read_text("utf-8"))[:512] for name in _TEXTS])
    return ids, reference_logits(builtin_reference(), ids)


def _request(options: WeightOptions, **more: object) -> ExportRequest:
    return ExportRequest(variant="tiny", weights=options, **more)  # type: ignore[arg-type]


def _with(options: WeightOptions) -> WeightOptions:
    return WeightOptions(**{**vars(options), "activation_aware": True})


def _logits(request: ExportRequest, ids: list[np.ndarray]) -> tuple[list[np.ndarray], float | None]:
    """Of every position by onnxruntime, and the KL that was measured where a bound was asked for."""
    plan, model = plan_export(request), _traced().clone()
    scales = settle_channel_scales(plan, model)
    assert (scales is not None) == bool(request.weights.activation_aware)
    plan, mixed = settle_precision(plan, model)
    graph = next(graph.model for graph in lower_graphs(plan, model) if graph.role == "all")
    runner = Graph(serialize(graph))
    return [runner.step(row, np.ones_like(row))[0] for row in ids], None if mixed is None else mixed.kl


def _held_out_kl(request: ExportRequest) -> float:
    ids, expected = _held_out()
    return measure_drift(expected, _logits(request, [ids])[0][0]).mean_kl


@pytest.mark.parametrize("layout", sorted(_LAYOUTS))
def test_drift_on_held_out_text_is_lower(layout: str) -> None:
    plain, aware = (_held_out_kl(_request(options)) for options in (_LAYOUTS[layout], _with(_LAYOUTS[layout])))
    # measured 0.89 to 0.98 over five layouts and two texts
    assert aware < plain


@pytest.mark.parametrize(("target", "precision"), [("ort", "fp16"), ("portable", "fp32")])
def test_where_weights_are_rescaled_or_apart(target: str, precision: str) -> None:
    """With a rescaled residual stream, and with query, key and value apart behind DequantizeLinear."""
    options = WeightOptions(scheme="int4")
    plain, aware = (
        _held_out_kl(_request(each, target=target, precision=precision)) for each in (options, _with(options))
    )
    assert aware < plain


def test_without_quantised_weights_nothing_changes() -> None:
    """What the folding itself loses: the scales are no powers of two, so float32 numbers are rounded once more."""
    plan = plan_export(_request(_with(WeightOptions(scheme="int4"))))
    folded, plain = _traced().clone(), _traced().clone()
    assert settle_channel_scales(plan, folded)
    float_plan = plan_export(ExportRequest(variant="tiny"))
    ids = _held_out()[0][:1]
    found, expected = (
        Graph(serialize(next(g.model for g in lower_graphs(float_plan, model) if g.role == "all"))).step(
            ids, np.ones_like(ids)
        )[0]
        for model in (folded, plain)
    )
    assert not np.array_equal(found, expected)
    assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * expected.std()


def test_a_bound_is_measured_on_the_scaled_weights() -> None:
    request = _request(_with(WeightOptions(scheme="int4")), max_kl=0.03)
    plan = plan_export(request)
    batches = [batch.numpy() for batch in measured_batches(plan.checkpoint, plan.spec)]
    found, measured = _logits(request, batches)
    model = builtin_reference()
    kls = [
        batch.size * measure_drift(reference_logits(model, batch), logits).mean_kl
        for batch, logits in zip(batches, found, strict=True)
    ]
    assert measured is not None
    assert measured <= 0.03
    assert sum(kls) / sum(batch.size for batch in batches) == pytest.approx(measured, rel=tolerances.MEASURED_KL)


def test_a_folder(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = export(_request(_with(WeightOptions(scheme="int4")), output=tmp_path / "out"))
    folder = tmp_path / "out"
    assert verify_folder(folder).extra_files == ()
    found = read_manifest(folder).precision.options["activation_aware"]
    assert found["tokens"] > 500
    assert len(found["strengths"]) == 4 * result.plan.spec.num_hidden_layers
    assert any(note.startswith("channels scaled in ") for note in result.notes)
    assert len(Gemma(folder).generate("def read_lines(path):", max_new_tokens=24).text.split()) > 3
