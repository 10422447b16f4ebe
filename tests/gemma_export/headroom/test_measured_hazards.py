"""Hazards beside the stream: measured as transformers computes them, warned of on the command line, in the manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from decoders import builtin_reference
from programs import gemma_export
from transformers.models.gemma import modeling_gemma

from gemma_export.headroom import Headroom, measure_headroom, probes_for
from gemma_export.planning import ExportPlan, plan_export
from gemma_export.precision import WeightOptions
from gemma_export.request import ExportRequest
from gemma_export.settling import settle_residual_scale
from gemma_export.tracing import model_weight
from gemma_runtime import read_manifest

_CHANGED = "model.layers.1.mlp.up_proj.weight"


def measured(plan: ExportPlan) -> Headroom:
    source = plan.checkpoint.view(plan.stored)
    return measure_headroom(plan.checkpoint, plan.family, plan.spec, lambda name: model_weight(source, None, name))


def run_probes(plan: ExportPlan, model: Any) -> None:
    with torch.no_grad():
        for probe in probes_for(plan.checkpoint, plan.spec):
            model(input_ids=torch.tensor([probe.token_ids]))


def test_attention_scores_peak_where_transformers_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_export(ExportRequest(variant="tiny", precision="fp16", residual_scale="measure"))
    eager = modeling_gemma.eager_attention_forward
    peaks = [0.0] * plan.spec.num_hidden_layers

    def look(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any
    ) -> Any:
        keys = modeling_gemma.repeat_kv(key, module.num_key_value_groups)
        scores = query @ keys.transpose(2, 3) * options["scaling"]
        peaks[module.layer_idx] = max(peaks[module.layer_idx], float(scores.abs().max()))
        return eager(module, query, key, value, *rest, **options)

    monkeypatch.setattr(modeling_gemma, "eager_attention_forward", look)
    model = builtin_reference()
    model.set_attn_implementation("eager")
    run_probes(plan, model)
    found = measured(plan).peaks["attention.scores"]
    assert found.value == pytest.approx(max(peaks), rel=1e-4)
    assert (found.layer, found.scaled) == (int(np.argmax(peaks)), False)


def test_norms_behind_branches_are_the_stream_and_what_they_norm_is_not() -> None:
    """Gemma 2: only what leaves the norm is rescaled, so a projection's own output stays a hazard."""
    plan = plan_export(ExportRequest(variant="tiny2", precision="fp16", residual_scale="measure"))
    model = builtin_reference("tiny2")
    peaks = {"self_attn.o_proj": 0.0, "mlp.down_proj": 0.0, "norms": 0.0}

    def hook(kind: str) -> Callable[[Any, Any, torch.Tensor], None]:
        def look(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            peaks[kind] = max(peaks[kind], float(output.abs().max()))

        return look

    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(hook("self_attn.o_proj"))
        layer.mlp.down_proj.register_forward_hook(hook("mlp.down_proj"))
        layer.post_attention_layernorm.register_forward_hook(hook("norms"))
        layer.post_feedforward_layernorm.register_forward_hook(hook("norms"))
    run_probes(plan, model)
    found = measured(plan)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        peak = found.peaks[f"{name}.output"]
        assert (peak.value, peak.scaled) == (pytest.approx(peaks[name], rel=1e-4), False)
    branches = [peak for name, peak in found.peaks.items() if name.endswith(".branch")]
    assert len(branches) == 2
    assert all(peak.scaled for peak in branches)
    assert max(peak.value for peak in branches) == pytest.approx(peaks["norms"], rel=1e-4)
    # said once, as what is added to the stream
    assert not {"post_attention_layernorm.output", "post_feedforward_layernorm.output"} & set(found.peaks)


@pytest.fixture(scope="module")
def hot(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """Checkpoints whose gelu(gate) * up peaks at a number: it is linear in `up`, which nothing before it reads."""
    root = tmp_path_factory.mktemp("hot")
    weights = {name: array.astype(np.float32) for name, array in checkpoints.tensors(checkpoints.CONFIG).items()}
    checkpoints.write(root / "cold", weights=weights)
    cold = measured(plan_export(ExportRequest(checkpoint=root / "cold", precision="fp16")))
    assert cold.warnings() == []
    # of this layer: the peak over all may be another's
    alone = dict(weights)
    alone["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"] * 0
    checkpoints.write(root / "alone", weights=alone)
    own = measured(plan_export(ExportRequest(checkpoint=root / "alone", precision="fp16"))).peaks["mlp.down_proj.input"]
    assert own.layer == 1

    def write(peak: float) -> Path:
        changed = alone | {_CHANGED: alone[_CHANGED] * np.float32(peak / own.value)}
        return checkpoints.write(root / f"{peak:.0f}", weights=changed)

    return write


def test_an_overflow_that_no_rescaling_cures_is_told(hot: Callable[[float], Path], tmp_path: Path) -> None:
    result = gemma_export("--checkpoint", hot(100_000.0), "--fp16", "--output", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    # what `up` alone gives comes near as well
    (warning,) = [line for line in result.stderr.splitlines() if "down_proj.input" in line]
    told = "warning: layers.1.mlp.down_proj.input peaks at 100,000 on the probe prompts, float16 ends at 65,504"
    assert warning.replace("99,999", "100,000").replace("100,001", "100,000") == told
    options = read_manifest(tmp_path / "out").precision.options["residual_scale"]
    found = options["measured"]
    peak = found["peaks"]["mlp.down_proj.input"]
    assert (peak["peak"], peak["layer"], peak["scaled"]) == (pytest.approx(1e5, rel=1e-3), 1, False)
    assert peak["headroom_bits"] == pytest.approx(np.log2(65504 / 1e5), abs=0.01)
    # the embedding's factor, sqrt(hidden_size), rescaled
    assert found["largest_constant"] == pytest.approx(32**0.5 * 2.0 ** -options["shift"], rel=1e-3)
    assert found["weights"]["mlp.up_proj.weight"]["largest"] > 1.0


@pytest.mark.parametrize(("peak", "warned"), [(16_000.0, False), (17_000.0, True)])
def test_two_bits_of_room_are_wanted_here_too(peak: float, warned: bool, hot: Callable[[float], Path]) -> None:
    found = measured(plan_export(ExportRequest(checkpoint=hot(peak), precision="fp16"))).warnings()
    assert [line.split(" peaks")[0] for line in found] == ["layers.1.mlp.down_proj.input"] * warned
    assert all(line.endswith(": other prompts may reach it") for line in found)


@pytest.mark.parametrize("scheme", [None, "int4", "int8"])
def test_ranges_are_of_what_is_stored(scheme: str | None) -> None:
    plan = plan_export(
        ExportRequest(variant="tiny", precision="fp16", residual_scale="measure", weights=WeightOptions(scheme=scheme))
    )
    _, found = settle_residual_scale(plan)
    assert found is not None
    matrices = {name for name in found.weights if "norm" not in name}
    assert {"input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight"} <= set(found.weights)
    assert (len(matrices) == 8) if scheme is None else (matrices == set())
