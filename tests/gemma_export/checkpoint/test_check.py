"""Names, shapes and types of a checkpoint against the configuration, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gemma_export.checkpoint import SafetensorsSource, check, check_tensors
from gemma_export.errors import CheckpointError
from gemma_export.tensors import StoredTensor

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
EXPECTED = {
    EMBEDDING: (8, 4),
    "model.layers.0.self_attn.q_proj.weight": (6, 4),
    "model.layers.0.input_layernorm.weight": (4,),
    "model.norm.weight": (4,),
}


class Memory:
    """Tensors in memory."""

    def __init__(self, tensors: Mapping[str, StoredTensor], content: Mapping[str, bytes] | None = None) -> None:
        self.tensors, self.content = tensors, content or {}

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.content[name][offset : offset + len(buffer)]


def stored(**changes: StoredTensor | None) -> dict[str, StoredTensor]:
    """The expected tensors in bfloat16, some changed, some (None) taken away."""
    tensors = {name: StoredTensor("bfloat16", shape) for name, shape in EXPECTED.items()} | changes
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def refusal(tensors: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]] = EXPECTED) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        check_tensors(Memory(tensors), expected)
    assert caught.value.message.isprintable()
    return caught.value


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_accepts_what_is_expected(dtype: str) -> None:
    check_tensors(Memory({name: StoredTensor(dtype, shape) for name, shape in EXPECTED.items()}), EXPECTED)


def test_accepts_types_that_differ_between_tensors() -> None:
    check_tensors(Memory(stored(**{"model.norm.weight": StoredTensor("float32", (4,))})), EXPECTED)


def test_missing_tensors_are_counted_and_the_first_is_named() -> None:
    tensors = stored(**{"model.norm.weight": None, "model.layers.0.input_layernorm.weight": None})
    message = refusal(tensors).message
    assert message == (
        "the checkpoint's tensors are not those of config.json: 2 of 4 missing, first "
        "model.layers.0.input_layernorm.weight"
    )


def test_no_tensors_at_all() -> None:
    assert f"4 of 4 missing, first {EMBEDDING}" in refusal({}).message


def test_unexpected_tensors_are_counted_and_the_first_is_named() -> None:
    bias = {f"model.layers.{layer}.mlp.bias": StoredTensor("bfloat16", (4,)) for layer in range(20)}
    message = refusal(stored(**bias)).message
    assert message.endswith(": 20 unexpected, first 'model.layers.0.mlp.bias'")


def test_a_renamed_tensor_is_shown_beside_the_missing_one() -> None:
    tensors = stored(**{"model.norm.weight": None, "model.final_norm.weight": StoredTensor("bfloat16", (4,))})
    error = refusal(tensors)
    assert "1 of 4 missing, first model.norm.weight (found 'model.final_norm.weight')" in error.message
    assert "1 unexpected, first 'model.final_norm.weight'" in error.message
    assert error.hint == "config.json and weights must be of one model."


def test_hostile_names_are_shown_escaped_and_short() -> None:
    tensors = stored(**{"\x1b[2J\n" + "x" * 10_000: StoredTensor("bfloat16", (4,))})
    assert len(refusal(tensors).message) < 400


def test_an_adapter_beside_the_weights_has_its_own_hint() -> None:
    tensors = stored(**{"model.layers.0.self_attn.q_proj.lora_A.weight": StoredTensor("bfloat16", (2, 4))})
    assert refusal(tensors).hint == "This is an adapter: give it with --adapter and its base model with --checkpoint."


def test_another_layer_count() -> None:
    tensors = stored(**{"model.layers.1.input_layernorm.weight": StoredTensor("bfloat16", (4,))})
    assert "1 unexpected, first 'model.layers.1.input_layernorm.weight'" in refusal(tensors).message


@pytest.mark.parametrize("shape", [(4, 8), (8, 5), (9, 4), (32,), (8, 4, 1), ()])
def test_another_shape(shape: tuple[int, ...]) -> None:
    message = refusal(stored(**{EMBEDDING: StoredTensor("bfloat16", shape)})).message
    assert message == f"tensor {EMBEDDING}: expected shape [8, 4] from config.json, found {list(shape)}"


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float8_e4m3", "float64", "bool"])
def test_quantised_weights(dtype: str) -> None:
    error = refusal(stored(**{"model.layers.0.self_attn.q_proj.weight": StoredTensor(dtype, (6, 4))}))
    assert error.message == (
        f"tensor model.layers.0.self_attn.q_proj.weight: expected float32, float16, bfloat16, found {dtype}"
    )
    assert "quantised" in error.hint


def test_buffers_that_the_reference_recomputes_are_ignored() -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    check_tensors(Memory(stored(**{name: StoredTensor("float32", (2,))})), EXPECTED)
    assert refusal(stored(**{f"{name}.x": StoredTensor("float32", (2,))}))


def tied(tmp_path: Path, head: torch.Tensor, table: torch.Tensor) -> SafetensorsSource:
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in EXPECTED.items()}
    save_file(tensors | {EMBEDDING: table, HEAD: head}, tmp_path / "model.safetensors")
    return SafetensorsSource([tmp_path / "model.safetensors"])


def embedding_table() -> torch.Tensor:
    return torch.arange(32, dtype=torch.bfloat16).reshape(8, 4)


@pytest.mark.parametrize("compare_bytes", [1, 7, 63, 64, 65, 4 << 20])
def test_a_saved_head_that_is_the_embedding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare_bytes: int
) -> None:
    monkeypatch.setattr(check, "_COMPARE_BYTES", compare_bytes)
    table = embedding_table()
    check_tensors(tied(tmp_path, table.clone(), table), EXPECTED)
    for position in ((0, 0), (3, 3), (7, 3)):
        head = table.clone()
        head[position] += 0.5
        with pytest.raises(CheckpointError, match=f"ties the head to the embedding, but {HEAD} differs") as caught:
            check_tensors(tied(tmp_path, head, table), EXPECTED)
        assert '"tie_word_embeddings": false' in caught.value.hint


@pytest.mark.parametrize("head", [torch.zeros(8, 5), torch.zeros(8, 4), torch.zeros(4, 8, dtype=torch.bfloat16)])
def test_a_saved_head_of_another_shape_or_type(tmp_path: Path, head: torch.Tensor) -> None:
    with pytest.raises(CheckpointError, match=f"but {HEAD} differs"):
        check_tensors(tied(tmp_path, head, torch.zeros(8, 4, dtype=torch.bfloat16)), EXPECTED)


def test_an_int8_head_beside_an_int8_embedding() -> None:
    int8 = StoredTensor("int8", (8, 4))
    assert f"but {HEAD} differs" in refusal(stored(**{EMBEDDING: int8, HEAD: int8})).message


def test_a_head_without_an_embedding_is_unexpected() -> None:
    message = refusal(stored(**{EMBEDDING: None, HEAD: StoredTensor("bfloat16", (8, 4))})).message
    assert f"1 of 4 missing, first {EMBEDDING}" in message
    assert f"1 unexpected, first '{HEAD}'" in message


def test_a_head_of_its_own_is_expected_where_the_configuration_says_so() -> None:
    head = {HEAD: StoredTensor("bfloat16", (8, 4))}
    # Memory has no content: the head is not compared with anything
    check_tensors(Memory(stored(**head)), EXPECTED | {HEAD: (8, 4)})
    assert f"1 of 5 missing, first {HEAD}" in refusal(stored(), EXPECTED | {HEAD: (8, 4)}).message
