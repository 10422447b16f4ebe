"""An adapter held against a base model: what fits is planned, what does not is refused before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adapters
import ml_dtypes
import numpy as np
import pytest

from gemma_export.adapter import Factors, Merge, MergedTensor, open_adapter, plan_merge
from gemma_export.errors import CheckpointError

EMBED, Q, DOWN = "model.embed_tokens", "model.layers.{}.self_attn.q_proj", "model.layers.{}.mlp.down_proj"
SHAPES: dict[str, tuple[int, ...]] = {f"{EMBED}.weight": (50, 12)}
for _layer in range(2):
    SHAPES |= {
        f"model.layers.{_layer}.input_layernorm.weight": (12,),
        f"{Q.format(_layer)}.weight": (16, 12),
        f"{DOWN.format(_layer)}.weight": (12, 20),
    }
UNTIED = {**SHAPES, "lm_head.weight": (50, 12)}
P = adapters.PREFIX
GOOD = adapters.tensors(SHAPES)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(dtype)


def plan(tmp_path: Path, weights: dict[str, np.ndarray], *, tied: bool = True, **changes: Any) -> Merge:
    adapter = open_adapter(adapters.write(tmp_path / "lora", weights, **changes))
    return plan_merge(adapter, SHAPES if tied else UNTIED, tied=tied)


def without(*ends: str) -> dict[str, np.ndarray]:
    return {name: value for name, value in GOOD.items() if not name.endswith(ends)}


TABLE = {f"{P}{EMBED}.lora_embedding_A": normal(4, 50), f"{P}{EMBED}.lora_embedding_B": normal(12, 4)}
HEAD = {f"{P}lm_head.lora_A.weight": normal(4, 12), f"{P}lm_head.lora_B.weight": normal(50, 4)}


def test_a_plan(tmp_path: Path) -> None:
    merge = plan(tmp_path, GOOD, rank_pattern={}, lora_alpha=6)
    assert merge.tied
    assert sorted(merge.tensors) == sorted(f"{kind.format(layer)}.weight" for kind in (Q, DOWN) for layer in range(2))
    assert merge.tensors[f"{Q.format(1)}.weight"] == MergedTensor(
        base=f"{Q.format(1)}.weight",
        from_adapter=False,
        factors=Factors(
            a=f"{P}{Q.format(1)}.lora_A.weight",
            b=f"{P}{Q.format(1)}.lora_B.weight",
            magnitude=None,
            rank=4,
            scale=1.5,
            embedding=False,
        ),
    )
    assert merge.ranks == (4,)
    # down_proj's factors, [4, 20] and [12, 4]
    assert merge.resident_bytes == 4 * (80 + 48)


def test_an_embedding_and_its_saved_base(tmp_path: Path) -> None:
    saved = {f"{P}{EMBED}.base_layer.weight": normal(50, 12, dtype=np.float16)}
    merge = plan(
        tmp_path, {**GOOD, **TABLE, **saved}, tied=False, target_modules=["embed_tokens", "q_proj", "down_proj"]
    )
    merged = merge.tensors[f"{EMBED}.weight"]
    assert (merged.base, merged.from_adapter) == (next(iter(saved)), True)
    assert merged.factors is not None
    assert merged.factors.embedding


@pytest.mark.parametrize(
    ("weights", "changes", "phrases"),
    [
        (without("layers.1.mlp.down_proj.lora_B.weight"), {}, ["lora_A but no lora_B", DOWN.format(1)]),
        (without("layers.0.self_attn.q_proj.lora_A.weight"), {}, ["lora_B but no lora_A", Q.format(0)]),
        (
            without("layers.1.mlp.down_proj.lora_B.weight", "layers.1.mlp.down_proj.lora_A.weight"),
            {},
            [f"no tensors for {DOWN.format(1)}", "1 missing"],
        ),
        (GOOD, {"target_modules": ["q_proj"]}, [f"tensors for {DOWN.format(0)}", "does not target"]),
        (GOOD, {"layers_to_transform": [0]}, [f"tensors for {DOWN.format(1)}", "does not target"]),
        (GOOD, {"exclude_modules": ["down_proj"]}, ["does not target"]),
        (GOOD, {"r": 8}, ["expected shape [8, 20]", "rank 8", "found [4, 20]"]),
        (GOOD, {"rank_pattern": {"down_proj": 2}}, [f"{P}{DOWN.format(0)}.lora_A.weight", "[2, 20]", "[4, 20]"]),
        (
            {**GOOD, f"{P}{Q.format(0)}.lora_B.weight": normal(32, 4)},
            {},
            [f"{P}{Q.format(0)}.lora_B.weight", "expected shape [16, 4]", f"{Q.format(0)}.weight [16, 12]", "[32, 4]"],
        ),
        ({**GOOD, f"{P}{Q.format(0)}.lora_A.weight": normal(12, 4)}, {}, ["expected shape [4, 12]", "found [12, 4]"]),
        ({**GOOD, f"{P}{Q.format(0)}.lora_A.weight": normal(48)}, {}, ["found [48]"]),
        (
            {**GOOD, f"{P}{Q.format(0)}.lora_A.weight": np.zeros((4, 12), np.int8)},
            {},
            ["float32, float16, bfloat16", "found int8"],
        ),
        (
            {**GOOD, f"{P}{Q.format(2)}.lora_A.weight": normal(4, 12)},
            {},
            ["no module model.layers.2", "q_proj, down_proj, lm_head"],
        ),
        (
            {
                **GOOD,
                f"{P}model.layers.0.input_layernorm.lora_A.weight": normal(4, 12),
                f"{P}model.layers.0.input_layernorm.lora_B.weight": normal(12, 4),
            },
            {},
            ["model.layers.0.input_layernorm of shape [12]", "by factors, expected a matrix"],
        ),
        (GOOD, {"use_dora": True}, ["use_dora is true", "no lora_magnitude_vector"]),
        (
            {**GOOD, f"{P}{Q.format(0)}.lora_magnitude_vector": normal(16)},
            {},
            ["use_dora is false", "a lora_magnitude_vector"],
        ),
        (
            {f"{P}{Q.format(0)}.lora_magnitude_vector": normal(16)},
            {"use_dora": True, "target_modules": [Q.format(0)]},
            ["neither lora_A nor lora_B"],
        ),
        (GOOD, {"modules_to_save": ["lm_head"]}, ["no tensor for lm_head", "modules_to_save"]),
        (
            {**GOOD, f"{P}lm_head.weight": normal(52, 12)},
            {"modules_to_save": ["lm_head"]},
            [f"{P}lm_head.weight", "expected shape [50, 12]", "found [52, 12]"],
        ),
        (
            {**GOOD, **TABLE},
            {"target_modules": ["q_proj", "down_proj", "embed_tokens"]},
            [f"changes {EMBED}", "one table"],
        ),
        ({**GOOD, **HEAD}, {"target_modules": ["q_proj", "down_proj", "lm_head"]}, ["changes lm_head", "one table"]),
        (
            {**GOOD, f"{P}lm_head.weight": normal(50, 12), f"{P}{EMBED}.weight": -normal(50, 12)},
            {},
            ["differ", "are one"],
        ),
        (
            {**GOOD, f"{P}lm_head.weight": normal(50, 12), f"{P}{EMBED}.weight": -normal(50, 12)},
            {"modules_to_save": [EMBED], "ensure_weight_tying": True},
            ["differ", "are one"],
        ),
    ],
)
def test_refusals(weights: dict[str, np.ndarray], changes: dict[str, Any], phrases: list[str], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        plan(tmp_path, weights, **changes)
    assert caught.value.exit_code == 3
    for phrase in phrases:
        assert phrase in caught.value.message, caught.value.message


def test_an_embedding_takes_no_projections_names(tmp_path: Path) -> None:
    wrong = {f"{P}{EMBED}.lora_A.weight": normal(4, 12), f"{P}{EMBED}.lora_B.weight": normal(50, 4)}
    with pytest.raises(CheckpointError, match=r"expected lora_embedding_A for model\.embed_tokens"):
        plan(tmp_path, wrong, tied=False, target_modules=["embed_tokens"])
    wrong = {f"{P}lm_head.lora_embedding_A": normal(4, 50), f"{P}lm_head.lora_embedding_B": normal(12, 4)}
    with pytest.raises(CheckpointError, match="expected lora_A for lm_head"):
        plan(tmp_path / "head", wrong, tied=False, target_modules=["lm_head"])


def test_dora_of_an_embedding_is_refused(tmp_path: Path) -> None:
    norms = {f"{P}{EMBED}.lora_magnitude_vector": normal(12)}
    with pytest.raises(CheckpointError, match=r"use_dora is true and model\.embed_tokens is targeted"):
        plan(tmp_path, {**TABLE, **norms}, tied=False, target_modules=["embed_tokens"], use_dora=True)


WHOLE = {"table": f"{P}{EMBED}.weight", "head": f"{P}lm_head.weight"}
BASE = f"{EMBED}.weight"


@pytest.mark.parametrize(
    ("saved", "modules", "ensure", "tied", "table", "head"),
    [
        # a copy of modules_to_save leaves the other one the base's: no longer tied
        (["table"], ["embed_tokens"], False, False, "table", None),
        (["head"], ["lm_head"], False, False, None, "head"),
        (["table", "head"], ["embed_tokens", "lm_head"], False, False, "table", "head"),
        # kept tied while training, or saved with save_embedding_layers: the shared table is replaced
        (["table"], ["embed_tokens"], True, True, "table", None),
        (["table"], None, False, True, "table", None),
        (["head"], None, False, True, "head", None),
    ],
)
def test_whole_tables_of_a_tied_model(
    saved: list[str],
    modules: list[str] | None,
    ensure: bool,
    tied: bool,
    table: str | None,
    head: str | None,
    tmp_path: Path,
) -> None:
    weights = {WHOLE[key]: sign * normal(50, 12) for sign, key in zip((1, -1), saved, strict=False)}
    merge = plan(tmp_path, {**GOOD, **weights}, modules_to_save=modules, ensure_weight_tying=ensure)
    assert merge.tied == tied
    found = merge.tensors[BASE]
    assert (found.base, found.from_adapter) == ((WHOLE[table], True) if table else (BASE, False))
    if tied:
        assert "lm_head.weight" not in merge.tensors
    else:
        found = merge.tensors["lm_head.weight"]
        assert (found.base, found.from_adapter) == ((WHOLE[head], True) if head else (BASE, False))


def test_equal_tables_stay_tied(tmp_path: Path) -> None:
    weights = {name: normal(50, 12, dtype=ml_dtypes.bfloat16) for name in WHOLE.values()}
    merge = plan(tmp_path, {**GOOD, **weights}, modules_to_save=["embed_tokens", "lm_head"])
    assert merge.tied
    assert "lm_head.weight" not in merge.tensors
