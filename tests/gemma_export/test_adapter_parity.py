"""A merged export against PEFT's own merge_and_unload of a float32 model: every weight, and logits through ONNX."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
import transformers
from decoders import CONFIGS, Graph, reference_logits, reference_model, write_checkpoint
from peft_adapters import ALL, make_adapter, merged_by_peft
from safetensors.torch import load_file, save_file

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, export
from gemma_export.planning import plan_export
from gemma_export.tracing.binding import merged_weight
from gemma_runtime import read_manifest

# (configuration of the base model, arguments of LoraConfig)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("gqa", {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 12}),
    "rank-stabilised": ("mqa", {"target_modules": ["q_proj", "down_proj"], "use_rslora": True}),
    "patterns": (
        "gqa",
        {
            "target_modules": ALL,
            # the first match counts, and PEFT saves the keys sorted
            "rank_pattern": {r"^model\.layers\.1\..*": 7, "down_proj": 3, "layers.2.self_attn.q_proj": 1},
            "alpha_pattern": {"layers.0.self_attn.*": 11, "gate_proj|up_proj": 0.5},
            "use_rslora": True,
        },
    ),
    "all-linear": ("gqa", {"target_modules": "all-linear", "lora_alpha": -5, "fan_in_fan_out": True, "bias": "all"}),
    "expression": ("mha", {"target_modules": r".*layers\.[02]\..*(q|up)_proj"}),
    "some layers": ("gqa", {"target_modules": ALL, "layers_to_transform": [1], "layers_pattern": "layers"}),
    "dora": ("gqa", {"target_modules": ALL, "use_dora": True, "use_rslora": True}),
    "untied embedding and head": ("untied", {"target_modules": ["embed_tokens", "lm_head", "o_proj"]}),
    "dora of a head": ("untied", {"target_modules": ["lm_head", "k_proj"], "use_dora": True}),
    "saved norms": ("gqa", {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    "saved feed-forward": ("gqa", {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]}),
    "saved embedding": ("gqa", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "saved head": ("gqa", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "saved both": ("gqa", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "saved tied": (
        "gqa",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "saved untied": ("untied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
}
EXPORTED = ("patterns", "dora", "untied embedding and head", "saved embedding", "saved tied", "saved norms")


class Case:
    def __init__(self, name: str, root: Path) -> None:
        kind, arguments = CASES[name]
        config = CONFIGS[kind]
        base = reference_model(config)
        self.request = ExportRequest(
            checkpoint=write_checkpoint(base, root / "base", config, BUILTIN_DIRECTORY),
            adapter=str(make_adapter(base, root / "lora", arguments)),
            output=root / "out",
        )
        self.base, self.expected = base, merged_by_peft(base, root / "lora")


def merged_weights(request: ExportRequest) -> dict[str, torch.Tensor]:
    plan = plan_export(request)
    assert plan.merge is not None
    assert plan.checkpoint.source is not None
    return {name: merged_weight(plan.checkpoint.source, plan.merge, name).tensor().float() for name in plan.tensors}


@pytest.mark.parametrize("name", CASES)
def test_weights(name: str, tmp_path: Path) -> None:
    case = Case(name, tmp_path)
    expected = case.expected.state_dict()
    if case.expected.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    found = merged_weights(case.request)
    assert found.keys() == expected.keys()
    untouched = case.base.state_dict()
    changed = 0
    for tensor, value in expected.items():
        changed += not torch.equal(value, untouched[tensor])
        # at most rank 7
        torch.testing.assert_close(found[tensor], value, rtol=0, atol=7 * tolerances.MERGED_WEIGHTS)
    assert changed


@pytest.mark.parametrize("name", EXPORTED)
def test_logits(name: str, tmp_path: Path) -> None:
    case = Case(name, tmp_path)
    export(case.request)
    ids = np.random.default_rng(0).integers(4, 3072, (2, 24))
    expected = reference_logits(case.expected, ids)
    found, _ = Graph(tmp_path / "out/onnx/model_all.onnx").step(ids, np.ones_like(ids))
    assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * expected.std()
    # the adapter is large enough that leaving it out would show
    plain = reference_logits(case.base, ids)
    assert np.abs(plain - expected).max() > 100 * tolerances.FP32_LOGITS * expected.std()
    tied = json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"]
    assert tied == case.expected.config.tie_word_embeddings


def test_half_precision_base_and_adapter(tmp_path: Path) -> None:
    """What is stored in bfloat16 and float16 is widened first, as PEFT does for a float32 model."""
    base = reference_model(CONFIGS["gqa"])
    base.load_state_dict({name: tensor.bfloat16() for name, tensor in base.state_dict().items()})
    write_checkpoint(copy.deepcopy(base).bfloat16(), tmp_path / "base", CONFIGS["gqa"], BUILTIN_DIRECTORY)
    adapter = make_adapter(base, tmp_path / "lora", {"target_modules": ALL})
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    expected = merged_by_peft(base, adapter).state_dict()
    found = merged_weights(ExportRequest(checkpoint=tmp_path / "base", adapter=str(adapter)))
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=4 * tolerances.MERGED_WEIGHTS)


def test_the_adapters_name_in_the_keys(tmp_path: Path) -> None:
    """Keys as a training loop saves them that calls state_dict itself."""
    base = reference_model(CONFIGS["gqa"])
    checkpoint = write_checkpoint(base, tmp_path / "base", CONFIGS["gqa"], BUILTIN_DIRECTORY)
    adapter = make_adapter(base, tmp_path / "lora", {"target_modules": ALL, "use_dora": True})
    request = ExportRequest(checkpoint=checkpoint, adapter=str(adapter))
    before = merged_weights(request)
    path = adapter / "adapter_model.safetensors"
    renamed = {}
    for name, tensor in load_file(path).items():
        part, dot, weight = name.rpartition(".weight")
        renamed[f"{part}.default{dot}{weight}" if dot else f"{name}.default.weight"] = tensor
    save_file(renamed, path)
    after = merged_weights(request)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_builtin_model_in_float16(tmp_path: Path) -> None:
    """The same bytes twice, the manifest, and the sum rescaled with the residual stream and rounded once."""
    base = transformers.GemmaForCausalLM.from_pretrained(BUILTIN_DIRECTORY, dtype=torch.float32).eval()
    adapter = make_adapter(base, tmp_path / "lora", {"target_modules": ALL, "r": 2, "rank_pattern": {"q_proj": 5}})
    for name in ("one", "two"):
        asked = ExportRequest(
            variant="tiny", adapter=str(adapter), precision="fp16", residual_scale="6", output=tmp_path / name
        )
        export(asked)
    data = [(tmp_path / name / "onnx/model_fp16.onnx_data").read_bytes() for name in ("one", "two")]
    assert data[0] == data[1]
    down = merged_by_peft(base, adapter).state_dict()["model.layers.3.mlp.down_proj.weight"]
    # a row is stored contiguously; ties of rounding may fall either way in a few elements, so look for most of it
    scale = read_manifest(tmp_path / "one").precision.options["residual_scale"]["shift"]
    assert scale == 6
    half = (down * 2.0**-scale).half().numpy()
    position = data[0].find(half[0, :8].tobytes())
    assert position >= 0
    stored = np.frombuffer(data[0], np.float16, half.size, position).reshape(half.shape)
    assert (stored == half).mean() > 0.999
    source = read_manifest(tmp_path / "one").source
    assert source.kind == "builtin"
    assert source.adapter is not None
    assert (source.adapter.name, source.adapter.ranks, source.adapter.repository) == ("lora", (2, 5), None)
    assert [file.name for file in source.adapter.files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert not {file.name for file in source.adapter.files} & {file.name for file in source.files}
