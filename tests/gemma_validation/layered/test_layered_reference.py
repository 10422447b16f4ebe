"""transformers' layers one at a time give what its whole model gives, in float32 and in bfloat16."""

from __future__ import annotations

import builtins
import copy
import dataclasses
import gc
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from decoders import CONFIGS, reference_model, write_checkpoint
from local_references import layers_of, opened, weights_of
from quantised_checkpoints import Layout, write
from windowed_decoders import WINDOWED_CONFIGS, windowed_reference

from gemma_export.base_checkpoint import released_config
from gemma_export.checkpoint import BUILTIN_DIRECTORY, SyntheticSource, open_checkpoint
from gemma_export.errors import NonFiniteError
from gemma_export.families import GEMMA, family_of
from gemma_export.layerwise import Tap
from gemma_export.variants import VARIANTS
from gemma_export.weights import Stored, one_thread
from gemma_validation.documents import Document
from gemma_validation.errors import MismatchError, MissingPackageError, ReferenceMissingError
from gemma_validation.layered import LayeredReference, architecture_of, products
from gemma_validation.layered.like_lengths import groups_of_like_length
from gemma_validation.reference import TransformersReference

_DOCUMENTS = tuple(
    Document(slice="random", name=str(index), token_ids=(2, *np.random.default_rng(index).integers(3, 3000, length)))
    for index, length in enumerate((6, 37, 0))
)


def whole(model: torch.nn.Module, document: Document) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor([document.token_ids])).logits[0].float().numpy()


def assert_same(
    reference: LayeredReference, model: torch.nn.Module, documents: Sequence[Document] = _DOCUMENTS
) -> None:
    """To float32 rounding: a block of the head is summed in another order than the whole of it.

    Kernels of another processor round otherwise, so more than usual may be as far as the whole model itself is from
    what it computes in float64.
    """
    reference.prepare(documents)
    for index, document in enumerate(documents):
        expected = whole(model, document)
        found = np.concatenate(
            [reference.logits(index, first, min(first + 5, len(expected))) for first in range(0, len(expected), 5)]
        )
        assert found.shape == expected.shape
        assert found.dtype == np.float32
        distance = np.abs(found - expected).max()
        if distance > 2e-6 * np.abs(expected).max():
            exact = whole(copy.deepcopy(model).double(), document)
            assert distance <= np.abs(expected - exact).max() < 5e-6 * np.abs(expected).max()


def test_built_in_checkpoint() -> None:
    reference = layers_of(BUILTIN_DIRECTORY, name="tiny")
    assert_same(reference, transformers.GemmaForCausalLM.from_pretrained(BUILTIN_DIRECTORY, dtype=torch.float32))
    assert reference.about.kind == "layerwise"
    assert reference.about.dtype == "float32"


@pytest.mark.parametrize("name", CONFIGS)
def test_random_architectures(name: str, tmp_path: Path) -> None:
    config = {**CONFIGS[name], "rms_norm_eps": 3e-4}
    model = reference_model(config)
    write_checkpoint(model, tmp_path, config, BUILTIN_DIRECTORY)
    assert_same(layers_of(tmp_path, name=name), model)


@pytest.mark.parametrize("name", ["built-in", *WINDOWED_CONFIGS])
def test_documents_of_like_length_run_side_by_side(
    name: str, windowed_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as if it were alone, whatever stands beside and behind it."""
    documents = [
        Document(
            slice="random", name=str(length), token_ids=(2, *np.random.default_rng(length).integers(3, 3000, length))
        )
        for length in (33, 5, 37, 30)
    ]
    if name == "built-in":
        directory = BUILTIN_DIRECTORY
        model = transformers.GemmaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    else:
        directory, model = windowed_checkpoint(name), windowed_reference(WINDOWED_CONFIGS[name])
    reference = layers_of(directory)
    shapes: list[tuple[int, ...]] = []
    call = reference.stack.call

    def seen(module: torch.nn.Module, index: int, hidden: torch.Tensor) -> torch.Tensor:
        if index == 0:
            shapes.append(tuple(hidden.shape[:2]))
        return call(module, index, hidden)

    monkeypatch.setattr(reference, "stack", dataclasses.replace(reference.stack, call=seen))
    assert_same(reference, model, documents)
    assert shapes == [(3, 38), (1, 6)]


def test_groups_hold_every_text_and_little_padding() -> None:
    assert groups_of_like_length([]) == []
    assert groups_of_like_length([3]) == [[0]]
    # more than 512 tokens are no group, and a quarter of padding is the most
    assert groups_of_like_length([200, 200, 200]) == [[0, 1], [2]]
    assert groups_of_like_length([9000, 100, 60]) == [[0], [1, 2]]
    assert groups_of_like_length([100, 59]) == [[0], [1]]
    lengths = np.random.default_rng(0).integers(1, 700, 200).tolist()
    groups = groups_of_like_length(lengths)
    assert sorted(index for group in groups for index in group) == list(range(200))
    for group in groups:
        rows, real = max(lengths[index] for index in group) * len(group), sum(lengths[index] for index in group)
        assert len(group) == 1 or (rows <= 512 and rows - real <= 0.25 * real)


def test_bfloat16_products_are_summed_in_float32_and_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 5, 300, generator=generator).bfloat16()
    weight = torch.randn(70, 300, generator=generator).bfloat16()
    # several pieces, the last one shorter
    monkeypatch.setattr("gemma_validation.layered.products._PIECE_BYTES", 4 * 300 * 32)
    exact = states.double() @ weight.double().T
    found = products.linear(states, weight)
    assert found.dtype == torch.bfloat16
    assert found.shape == (2, 5, 70)
    # half a unit in the last place, and what float32 sums lose
    assert ((found.double() - exact).abs() <= exact.abs() * 2.0**-8 * 1.01 + 1e-4).all()
    assert torch.equal(products.linear(states.float(), weight.float()), states.float() @ weight.float().T)
    # torch's own kernels round the same sums: ties apart
    assert (products.linear(states, weight) != torch.nn.functional.linear(states, weight)).float().mean() < 0.01
    module = products.widen_linears(torch.nn.Sequential(torch.nn.Linear(300, 70, bias=False)).bfloat16())
    module[0].weight.data.copy_(weight)
    assert torch.equal(module(states), found)


def test_final_states_are_the_whole_model_s_to_the_bit() -> None:
    """Nothing but the head is computed in pieces."""
    reference = layers_of(BUILTIN_DIRECTORY, name="tiny")
    model = transformers.GemmaForCausalLM.from_pretrained(
        BUILTIN_DIRECTORY, dtype=torch.float32, attn_implementation="eager"
    )
    found: dict[str, torch.Tensor] = {}
    reference.prepare(_DOCUMENTS, lambda tap, tensor: found.update({f"{tap}/{tap.batch}": tensor.clone()}))
    for index, document in enumerate(_DOCUMENTS):
        # another number of threads sums in another order
        with torch.no_grad(), one_thread():
            states = model.model(torch.tensor([document.token_ids]), output_hidden_states=True)
        assert torch.equal(found[f"embedding/{index}"], states.hidden_states[0])
        assert torch.equal(found[f"layers.0.output/{index}"], states.hidden_states[1])
        assert torch.equal(found[f"norm.output/{index}"], states.last_hidden_state)


def test_bfloat16_is_transformers_in_bfloat16() -> None:
    noise = layers_of(BUILTIN_DIRECTORY, name="tiny").noise()
    assert noise is not None
    assert noise.about.dtype == "bfloat16"
    assert noise.noise() is None
    noise.prepare(_DOCUMENTS)
    model = transformers.GemmaForCausalLM.from_pretrained(
        BUILTIN_DIRECTORY, dtype=torch.bfloat16, attn_implementation="eager"
    )
    wide = transformers.GemmaForCausalLM.from_pretrained(BUILTIN_DIRECTORY, dtype=torch.float32)
    plain = [whole(model, document) for document in _DOCUMENTS]
    products.widen_linears(model)
    for index, document in enumerate(_DOCUMENTS):
        expected, exact = whole(model, document), whole(wide, document)
        found = noise.logits(index, 0, len(expected))
        # the same roundings, but for what a sum's order moves: much nearer to each other than to float32
        assert np.square(found - expected).sum() <= 0.05 * np.square(expected - exact).sum()
        # torch's own products turn a tie now and then, which then goes through all layers: as far, another way
        assert 0.5 <= np.square(found - exact).sum() / np.square(plain[index] - exact).sum() <= 2


@pytest.mark.parametrize("name", WINDOWED_CONFIGS)
def test_windows_softcaps_and_norms_behind_branches(name: str, windowed_checkpoint: Callable[[str], Path]) -> None:
    """Documents of several windows, against the whole model; the stream behind attention too, where it is looked at."""
    reference, model = layers_of(windowed_checkpoint(name), name=name), windowed_reference(WINDOWED_CONFIGS[name])
    assert max(len(document.token_ids) for document in _DOCUMENTS) > 2 * WINDOWED_CONFIGS[name]["sliding_window"]
    assert_same(reference, model)

    found: dict[str, torch.Tensor] = {}
    reference.prepare(_DOCUMENTS[1:2], lambda tap, tensor: found.update({str(tap): tensor.clone()}))
    seen: dict[str, torch.Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        layer.pre_feedforward_layernorm.register_forward_pre_hook(
            lambda _, inputs, index=index: seen.update({f"layers.{index}": inputs[0].clone()})
        )
    with torch.no_grad(), one_thread():
        states = model.model(torch.tensor([_DOCUMENTS[1].token_ids]), output_hidden_states=True)
    assert torch.equal(found["norm.output"], states.last_hidden_state)
    assert len(seen) == reference.stack.num_layers
    for layer, tensor in seen.items():
        assert torch.equal(found[f"{layer}.{reference.architecture.attention_residual}"], tensor)


@pytest.mark.parametrize("name", ["built-in", *WINDOWED_CONFIGS])
def test_a_cache_goes_in_and_out(
    name: str, windowed_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the whole model has it, outside windows too; both ways in one reading of the layers."""
    directory = BUILTIN_DIRECTORY if name == "built-in" else windowed_checkpoint(name)
    reference, whole_model = layers_of(directory), TransformersReference(opened(directory))
    ids, split = _DOCUMENTS[1].token_ids, 30
    past = whole_model.cache_after(ids[:split])
    readings: list[int] = []
    run = reference._run
    monkeypatch.setattr(reference, "_run", lambda texts, **rest: readings.append(len(texts)) or run(texts, **rest))
    for given, prepared in ((past, False), (past, True), (tuple(past[index ^ 1] for index in range(len(past))), True)):
        readings.clear()
        for source in (reference, whole_model):
            source.exchange(ids, given)
        if prepared:
            reference.prepare(_DOCUMENTS)
        found, expected = reference.exchanged(), whole_model.exchanged()
        assert readings == [2 + len(_DOCUMENTS) * prepared]
        assert {part.shape[2] for part in found.cache} == {split}
        for part, wanted in zip(found.cache, expected.cache, strict=True):
            assert part.dtype == np.float32
            assert np.abs(part - wanted).max() < 1e-5 * wanted.std()
        assert np.abs(found.plain - expected.plain).max() < 1e-5 * expected.plain.std()
        assert np.abs(found.behind - expected.behind).max() < 1e-4 * expected.behind.std()
        assert (np.abs(found.behind - found.plain).max() > 0.1) == (given is not past)


def test_a_cache_that_is_no_number_costs_the_documents_nothing() -> None:
    reference = layers_of(BUILTIN_DIRECTORY)
    ids = _DOCUMENTS[1].token_ids
    reference.prepare(_DOCUMENTS)
    expected = reference.logits(1, 0, len(ids)).copy()
    past = TransformersReference(opened(BUILTIN_DIRECTORY)).cache_after(ids[:30])
    reference.exchange(ids, tuple(np.full_like(part, np.nan) for part in past))
    reference.prepare(_DOCUMENTS)
    assert np.array_equal(reference.logits(1, 0, len(ids)), expected)
    found = reference.exchanged()
    assert np.isnan(found.behind).all()
    assert np.abs(found.plain - expected[30:]).max() < 1e-5 * expected.std()


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_long_documents_attend_in_pieces(
    name: str, windowed_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries some at a time, with their own rows of the mask."""
    monkeypatch.setattr("gemma_validation.layered.pieces._QUERIES", 5)
    assert_same(layers_of(windowed_checkpoint(name), name=name), windowed_reference(WINDOWED_CONFIGS[name]))


def test_bfloat16_rounds_soft_capping_step_by_step(windowed_checkpoint: Callable[[str], Path]) -> None:
    """As transformers does it: cap * tanh(x / cap) in bfloat16 is another number than its float32 value rounded."""
    noise = layers_of(windowed_checkpoint("gemma2")).noise()
    assert noise is not None
    model = windowed_reference(WINDOWED_CONFIGS["gemma2"]).to(torch.bfloat16)
    with torch.no_grad():
        # the same final states, so that nothing but the head and its soft-capping is compared
        noise.prepare(_DOCUMENTS[:1])
        assert noise._states is not None
        capped = products.linear(noise._states, model.lm_head.weight) / model.config.final_logit_softcapping
        expected = torch.tanh(capped) * model.config.final_logit_softcapping
    assert np.array_equal(noise.logits(0, 0, 7), expected.float().numpy())


def test_old_configurations_mean_tanh(tmp_path: Path) -> None:
    """Released configs say gelu; the erf would be another model."""
    model = reference_model(CONFIGS["gqa"])
    write_checkpoint(model, tmp_path, CONFIGS["gqa"], BUILTIN_DIRECTORY)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma", **CONFIGS["gqa"], "hidden_act": "gelu", "hidden_activation": None})
    )
    assert_same(layers_of(tmp_path, name="old"), model)


def test_quantised_checkpoints_are_read_as_numbers(tmp_path: Path) -> None:
    quantised = write(tmp_path / "gptq", Layout(desc_act=True))
    assert_same(layers_of(quantised.directory, name="gptq"), quantised.model)


def test_weights_from_elsewhere() -> None:
    checkpoint = open_checkpoint(BUILTIN_DIRECTORY, weights=False)
    spec, _ = GEMMA.parse_config(checkpoint.config)
    source = SyntheticSource(GEMMA.tensor_shapes(spec), 7)
    reference = LayeredReference(checkpoint.config, name="synthetic", weights=lambda name: Stored(source, name))
    reference.prepare(_DOCUMENTS)
    assert reference.logits(1, 0, 38).shape == (38, reference.vocab_size)
    noise = reference.noise()
    assert noise is not None
    noise.prepare(_DOCUMENTS)
    assert noise.logits(0, 0, 1).shape == (1, reference.vocab_size)


def test_one_reading_of_the_head_serves_documents_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = layers_of(BUILTIN_DIRECTORY, name="tiny")
    reference.prepare(_DOCUMENTS)
    read: list[str] = []
    weight = reference.weight
    monkeypatch.setattr(reference, "weight", lambda name: read.append(name) or weight(name))
    monkeypatch.setattr("gemma_validation.layered.reference._LOGIT_ROWS", 40)
    for index, document in enumerate(_DOCUMENTS):
        for position in range(len(document.token_ids)):
            reference.logits(index, position, position + 1)
    assert len(read) == 2, "46 positions, 40 at a time"
    reference.close()
    with pytest.raises(AssertionError, match="prepare"):
        reference.logits(0, 0, 1)


def test_one_layer_at_a_time() -> None:
    reference = layers_of(BUILTIN_DIRECTORY, name="tiny")
    shape = reference.stack.layer(0).get_parameter("mlp.up_proj.weight").shape
    counts = []

    def count(tap: Tap, tensor: torch.Tensor) -> None:
        if tap.name == "mlp.down_proj.output":
            gc.collect()
            alive = [value for value in gc.get_objects() if type(value) is torch.nn.Parameter]
            counts.append(sum(value.device.type == "cpu" and value.shape == shape for value in alive))

    reference.prepare(_DOCUMENTS[:1], count)
    assert counts
    # query, gate and up of one layer
    assert set(counts) == {3}


@pytest.mark.parametrize("variant", [name for name, variant in VARIANTS.items() if variant.family != "gemma"])
def test_released_sizes_have_the_same_parameters(variant: str) -> None:
    """Without weights: names and shapes of a layer and of the norm are the architecture's."""
    config = released_config(VARIANTS[variant])
    family = family_of(config)
    spec, _ = family.parse_config(config)
    shapes, stack = family.tensor_shapes(spec), architecture_of(config).stack(config)
    found = {
        stack.layer_weight(index, name): tuple(parameter.shape)
        for index in range(stack.num_layers)
        for name, parameter in stack.layer(index).named_parameters()
    }
    found |= {stack.norm_weight(name): tuple(parameter.shape) for name, parameter in stack.norm().named_parameters()}
    assert found == {name: shape for name, shape in shapes.items() if name not in (stack.embedding, stack.head)}
    assert stack.final_softcap == spec.final_softcap


def test_another_architecture_is_refused() -> None:
    with pytest.raises(MismatchError, match="model_type 'llama', expected one of gemma, gemma2, gemma3_text"):
        LayeredReference({"model_type": "llama"}, name="llama", weights=weights_of(BUILTIN_DIRECTORY))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("gemma_validation.layered.gemma")]:
        monkeypatch.delitem(sys.modules, name)
    found = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.split(".")[0] == "transformers":
            raise ModuleNotFoundError(f"No module named {name!r}", name="transformers")
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match="needs transformers") as caught:
        layers_of(BUILTIN_DIRECTORY)
    assert "gemma-export[validate]" in caught.value.hint


def test_a_checkpoint_that_is_not_what_it_says(tmp_path: Path) -> None:
    model = reference_model(CONFIGS["gqa"])
    write_checkpoint(model, tmp_path, {**CONFIGS["gqa"], "intermediate_size": 96}, BUILTIN_DIRECTORY)
    with pytest.raises(ReferenceMissingError, match="expected shape"):
        layers_of(tmp_path, name="wrong")


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    model = reference_model(CONFIGS["gqa"])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    write_checkpoint(model, tmp_path, CONFIGS["gqa"], BUILTIN_DIRECTORY)
    reference = layers_of(tmp_path, name="damaged")
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp\.up_proj\.weight, position \[3, 4\]"):
        reference.prepare(_DOCUMENTS)
