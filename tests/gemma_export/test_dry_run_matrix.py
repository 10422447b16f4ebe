"""Every (target, precision, variant) combination plans, or says why it cannot; nothing is written."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from gemma_export.errors import UsageError
from gemma_export.planning import ExportPlan, plan_export
from gemma_export.precision import PRECISIONS, SCHEMES, WeightOptions
from gemma_export.request import ExportRequest
from gemma_export.targets import TARGETS
from gemma_export.variants import VARIANTS

# one variant of each architecture: what else a name decides is no part of a plan
_SIZES = tuple({(v.family, v.architecture, repr(v.constants)): name for name, v in reversed(VARIANTS.items())}.values())
_COMBINATIONS = [
    pytest.param(target, functions, precision, variant, id=f"{target}{' functions' * functions}-{precision}-{variant}")
    for target in TARGETS
    for functions in (False, True)
    for precision in PRECISIONS
    for variant in _SIZES
]


def _tables(plan: ExportPlan) -> int:
    """Numbers in the rotary tables: none where steps compute the rows that they need."""
    spec = plan.spec
    if spec.computes_rotary and not plan.request.keep_functions:
        return 0
    return len(spec.rotary_tables) * spec.max_position_embeddings * spec.head_dim


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_plans(variant: str, tmp_path: Path) -> None:
    plan = plan_export(ExportRequest(variant=variant, synthetic_seed=0, precision="fp16", output=tmp_path / "folder"))
    assert plan.variant is VARIANTS[variant]
    assert plan.nbytes > plan.data.size > 0


@pytest.mark.parametrize(("target", "functions", "precision", "variant"), _COMBINATIONS)
def test_dry_run(target: str, functions: bool, precision: str, variant: str, tmp_path: Path) -> None:
    request = ExportRequest(
        variant=variant,
        synthetic_seed=0,
        target=target,
        keep_functions=functions,
        precision=precision,
        output=tmp_path / "folder",
    )
    activations = PRECISIONS[precision].activation_dtype
    if functions and TARGETS[target].with_functions is None:
        with pytest.raises(UsageError, match=f"--keep-functions does not apply to target {target}"):
            plan_export(request)
        return
    if activations not in TARGETS[target].providers:
        with pytest.raises(UsageError, match=f"target {target} has no {activations} kernels: --{precision}"):
            plan_export(request)
        return
    plan = plan_export(request)
    roles = {graph.role for graph in plan.graphs}
    assert {"main", "all", "last8"} <= roles
    assert ("batched" in roles) == (TARGETS[target].compat is not None)
    # onnxruntime captures graphs on CUDA, whose attention has no float32
    assert ("static" in roles) == (target == "ort" and precision != "fp32")
    # every parameter once, and the rotary tables
    parameters = sum(math.prod(shape) for shape in plan.tensors.values())
    tables = _tables(plan)
    stored = plan.precision.stored_nbytes((parameters + tables,))
    # small tensors stay in the graphs, large ones are aligned
    assert stored * 0.99 <= plan.data.size <= stored * 1.01
    assert plan.nbytes > plan.data.size
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variant", _SIZES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("target", TARGETS)
def test_dry_run_of_integer_weights(target: str, scheme: str, precision: str, variant: str, tmp_path: Path) -> None:
    request = ExportRequest(
        variant=variant,
        synthetic_seed=0,
        target=target,
        precision=precision,
        weights=WeightOptions(scheme=scheme),
        output=tmp_path / "folder",
    )
    if TARGETS[target].quantise is None:
        with pytest.raises(UsageError, match=f"target {target} has no kernels for {scheme} weights"):
            plan_export(request)
        return
    if SCHEMES[scheme].dynamic and TARGETS[target].quantise_activations is None:
        with pytest.raises(UsageError, match=f"target {target} has no kernels for --{scheme}"):
            plan_export(request)
        return
    if PRECISIONS[precision].activation_dtype not in TARGETS[target].providers:
        with pytest.raises(UsageError, match=f"target {target} has no .* kernels: --{precision}"):
            plan_export(request)
        return
    if SCHEMES[scheme].dynamic and precision != "fp32":
        with pytest.raises(UsageError, match=f"--{scheme} and --{precision} exclude each other"):
            plan_export(request)
        return
    plan = plan_export(request)
    parameters = sum(math.prod(shape) for shape in plan.tensors.values())
    bits = {"int4": 4, "int8": 8, "int8-dynamic": 8}[scheme]
    tables = PRECISIONS[precision].stored_nbytes((_tables(plan),))
    # scales and zero points come on top: at most 32 + 8 bits a block of 128
    assert parameters * bits / 8 < plan.data.size - tables < parameters * (bits + 0.35) / 8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variant", _SIZES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scheme", [None, *SCHEMES])
@pytest.mark.parametrize("target", TARGETS)
def test_dry_run_of_integer_caches(
    target: str, scheme: str | None, precision: str, variant: str, tmp_path: Path
) -> None:
    request = ExportRequest(
        variant=variant,
        synthetic_seed=0,
        target=target,
        precision=precision,
        weights=WeightOptions(scheme=scheme),
        kv_cache="int8",
        output=tmp_path / "folder",
    )
    if target != "ort" or precision == "bf16" or (scheme == "int8-dynamic" and precision != "fp32"):
        words = f"target {target} has no|--kv-cache int8 runs on the CPU provider|exclude each other"
        with pytest.raises(UsageError, match=words):
            plan_export(request)
        return
    plan, plain = plan_export(request), plan_export(dataclasses.replace(request, kv_cache=None))
    assert plan.precision.name == plain.precision.name
    # CUDA does not run such a cache, so there is nothing to capture
    assert plan.graphs == tuple(graph for graph in plain.graphs if not graph.static)
    assert plan.facts.providers == ("cpu",)
    # a float32 scale for each number of a token's keys and values; those below a kilobyte stay in the graphs
    spec = plan.spec
    numbers = 2 * spec.num_hidden_layers * spec.key_value_size
    assert plan.precision.state_nbytes(plan.facts.states) == numbers
    assert plan.data.size - plain.data.size == (4 * numbers if 4 * spec.key_value_size >= 1024 else 0)
    assert list(tmp_path.iterdir()) == []
