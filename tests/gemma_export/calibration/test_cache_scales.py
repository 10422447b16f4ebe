"""Scales of an integer cache: they cover what transformers' own cache holds, at every position."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import CONFIGS, builtin_reference, reference_model
from graphs import ArraySource

from gemma_export.calibration.cache_scales import cache_scales
from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.families import FAMILIES
from gemma_export.layerwise import checkpoint_weights, reference_stack
from gemma_export.pipeline import ExportRequest
from gemma_export.planning import plan_export
from gemma_export.precision import CACHE_FORMATS, WeightOptions
from gemma_runtime.tokenizer import load_tokenizer

_INT8 = CACHE_FORMATS["int8"]
_GEMMA = FAMILIES["gemma"]
_SEQUENCES = [np.random.default_rng(seed).integers(4, 3072, 5 + 9 * seed).tolist() for seed in range(3)]


def _scales(name: str, model: torch.nn.Module, tmp_path: Path) -> dict[str, np.ndarray]:
    spec, _ = _GEMMA.parse_config({"model_type": "gemma", **CONFIGS[name]})
    arrays = {key: tensor.numpy() for key, tensor in model.state_dict().items() if key in _GEMMA.tensor_shapes(spec)}
    weights = checkpoint_weights(ArraySource(arrays))
    stack = reference_stack(_GEMMA, spec, positions=32)
    return dict(cache_scales(stack, _GEMMA.cache_states(spec), weights, _SEQUENCES, _INT8, directory=tmp_path))


@pytest.mark.parametrize("name", ["gqa", "mqa", "odd rotary"])
@torch.no_grad()
def test_cover_the_references_own_cache(name: str, tmp_path: Path) -> None:
    model = reference_model(CONFIGS[name])
    found = _scales(name, model, tmp_path)
    caches = [model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values for ids in _SEQUENCES]
    for layer in range(int(str(CONFIGS[name]["num_hidden_layers"]))):
        for part in ("key", "value"):
            states = [getattr(cache.layers[layer], f"{part}s").numpy() for cache in caches]
            if part == "key":
                # whatever its position: the length of each pair that rotary embedding turns
                states = [np.tile(np.hypot(*np.split(state, 2, axis=-1)), 2) for state in states]
            largest = np.max([np.abs(state).max(axis=(0, 2)) for state in states], axis=0)
            scale = found.pop(f"past_key_values.{layer}.{part}")
            assert scale.dtype == np.float32
            assert scale.shape == (1, largest.shape[0], 1, largest.shape[1])
            np.testing.assert_allclose(scale[0, :, 0] * 127, largest * _INT8.margin, rtol=1e-4)
    assert found == {}


def test_a_channel_without_values_has_a_range(tmp_path: Path) -> None:
    """A scale of 0 would divide by it."""
    model = reference_model(CONFIGS["gqa"])
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight[3] = 0
        model.model.layers[1].self_attn.v_proj.weight[:] = 0
    found = _scales("gqa", model, tmp_path)
    first, second = (found[f"past_key_values.{layer}.value"] for layer in (0, 1))
    assert first[0, 0, 0, 3] == pytest.approx(first.max() / 1024)
    assert np.isfinite(second).all()
    assert (second > 0).all()


def _request(**options: object) -> ExportRequest:
    return ExportRequest(variant="tiny", kv_cache="int8", output=Path("unused"), **options)  # type: ignore[arg-type]


def test_which_text(tmp_path: Path) -> None:
    plan = plan_export(_request())
    assert plan.calibration is not None
    assert (plan.calibration.options["source"], plan.calibration.tokens) == ("built-in", 16 * 256)
    path = tmp_path / "mine.txt"
    path.write_text("def add(a, b):\n    return a + b\n" * 800)
    own = plan_export(_request(calibration=path)).calibration
    assert own is not None
    assert own.options["source"] == "mine.txt"
    synthetic = plan_export(_request(synthetic_seed=0)).calibration
    assert synthetic is not None
    assert synthetic.options["source"] == "random token ids"
    gptq = plan_export(_request(weights=WeightOptions(scheme="int4", quantiser="gptq"))).calibration
    assert gptq is not None
    assert gptq.tokens > plan.calibration.tokens


def test_plans_count_the_pass_and_the_bytes() -> None:
    plain, cached = (plan_export(dataclasses.replace(_request(), kv_cache=cache)) for cache in (None, "int8"))
    assert cached.peak_memory_bytes > plain.peak_memory_bytes
    assert 0 < cached.scratch_bytes < plain.data.size
    assert plain.scratch_bytes == 0


def test_the_default_folder_has_a_name_of_its_own() -> None:
    names = {
        str(plan_export(dataclasses.replace(_request(precision=precision), output=None, kv_cache=cache)).output)
        for precision in ("fp32", "fp16")
        for cache in (None, "int8")
    }
    assert names == {"gemma-tiny-fp32", "gemma-tiny-fp16", "gemma-tiny-fp32-kvint8", "gemma-tiny-fp16-kvint8"}


@torch.no_grad()
def test_other_and_longer_text_is_hardly_cut_off(tmp_path: Path) -> None:
    """Margin and radius: with the largest of each key channel by itself 1.3e-3 of these keys are beyond the range."""
    plan = plan_export(_request())
    assert plan.calibration is not None
    assert plan.checkpoint.source is not None
    stack = reference_stack(plan.family, plan.spec, positions=256)
    weights = checkpoint_weights(plan.checkpoint.source)
    states = plan.family.cache_states(plan.spec)
    found = cache_scales(stack, states, weights, plan.calibration.token_ids, _INT8, directory=tmp_path)
    ids = load_tokenizer(BUILTIN_DIRECTORY).encode(Path(__file__).read_text(encoding="utf-8"))[:1600]
    assert len(ids) == 1600
    cache = builtin_reference()(input_ids=torch.tensor([ids]), use_cache=True).past_key_values
    for part, share in (("key", 1e-4), ("value", 1e-3)):
        beyond = [
            np.abs(getattr(layer, f"{part}s").numpy()) > 127.5 * found[f"past_key_values.{index}.{part}"]
            for index, layer in enumerate(cache.layers)
        ]
        assert np.mean(beyond) < share, part
