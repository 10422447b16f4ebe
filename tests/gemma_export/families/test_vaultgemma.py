"""VaultGemma: Gemma 2 without post-norms, read strictly, and the same numbers as transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from decoders import Graph, reference_choices, reference_logits
from windowed_decoders import VAULT_CONFIG, windowed_reference, write_windowed_checkpoint

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.errors import ConfigError
from gemma_export.families import FAMILIES, family_of
from gemma_export.pipeline import ExportRequest, export

VAULTGEMMA = FAMILIES["vaultgemma"]


def parse(**changes: Any) -> Any:
    config = {key: value for key, value in {**VAULT_CONFIG, **changes}.items() if value != "absent"}
    return VAULTGEMMA.parse_config(config)


def test_config() -> None:
    assert family_of(VAULT_CONFIG) is VAULTGEMMA
    spec, unread = parse()
    assert unread == ()
    assert spec.windows == (0, 9, 0)
    assert (spec.attention_softcap, spec.final_softcap) == (3.0, 5.0)
    assert spec.attention_scale == pytest.approx(19**-0.5)
    assert not spec.post_norms
    # as the released model is described
    assert parse(layer_types=["full_attention"] * 3, sliding_window=None)[0].windows == (0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": "absent"}, "says which layers have a window"),
        ({"layer_types": ["full_attention"]}, "one entry for each of 3 layers, found 1 entries"),
        ({"query_pre_attn_scalar": "absent"}, "missing key 'query_pre_attn_scalar'"),
        ({"attn_logit_softcapping": "absent"}, "missing key 'attn_logit_softcapping'"),
        ({"final_logit_softcapping": "absent"}, "missing key 'final_logit_softcapping'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling is .* not implemented"),
        ({"attention_bias": True}, "attention_bias is True: it changes the mathematics"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse(**changes)
    assert caught.value.exit_code == 3


def test_names_and_shapes_are_the_reference_implementations() -> None:
    spec, _ = parse()
    expected = {name: tuple(tensor.shape) for name, tensor in windowed_reference(VAULT_CONFIG).named_parameters()}
    assert VAULTGEMMA.tensor_shapes(spec) == expected
    built = {name: tuple(tensor.shape) for name, tensor in VAULTGEMMA.build(spec).named_parameters()}
    assert built == expected


def test_parity(tmp_path: Path) -> None:
    """Several windows in one shot, in chunks and greedily, on the kernels and on parts of attention."""
    model = windowed_reference(VAULT_CONFIG)
    checkpoint = write_windowed_checkpoint(model, tmp_path / "checkpoint", VAULT_CONFIG, BUILTIN_DIRECTORY)
    ids = np.random.default_rng(1).integers(108, 3072, (1, 40))
    expected = reference_logits(model, ids)
    for target in ("ort", "directml"):
        export(ExportRequest(checkpoint=checkpoint, target=target, output=tmp_path / target))
        graph = Graph(tmp_path / target / "onnx/model_all.onnx")
        outputs = [graph.step(ids, np.ones_like(ids))[0]]
        if target == "ort":
            outputs.append(graph.chunks(ids, 7))
        for found in outputs:
            assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * expected.std()
        tokens = graph.greedy(ids[:, :8], 24)
        assert tokens == reference_choices(model, ids[:, :8], tokens)
