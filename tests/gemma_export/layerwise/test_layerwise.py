"""Layer by layer gives what the whole model gives, shows every tap, and holds one layer's weights at a time."""

from __future__ import annotations

import dataclasses
import gc
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import CONFIGS, reference_model
from graphs import GEMMA, SPEC, ArraySource, random_arrays
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer, GemmaRMSNorm

from gemma_export.errors import NonFiniteError, ResourceExhaustedError
from gemma_export.layerwise import (
    HiddenStates,
    LayerStack,
    LayerwiseRun,
    Tap,
    checkpoint_weights,
    reference_stack,
    require_finite,
)
from gemma_export.progress import LineProgress
from gemma_export.weights import Constant, Weight

_CONFIG = CONFIGS["untied"]
_BATCHES = (torch.tensor([[2, 5, 9, 300, 5, 6]]), torch.tensor([[2, 4, 4], [7, 8, 319]]), torch.tensor([[2]]))


def source() -> ArraySource:
    model = reference_model(_CONFIG)
    return ArraySource({name: tensor.numpy() for name, tensor in model.state_dict().items()})


def own_run(weights: ArraySource, **options: object) -> LayerwiseRun:
    spec, _ = GEMMA.parse_config({"model_type": "gemma", **_CONFIG})
    stack = reference_stack(GEMMA, spec, positions=6)
    return LayerwiseRun(stack, checkpoint_weights(weights), _BATCHES, **options)


def small_run(arrays: dict[str, np.ndarray]) -> LayerwiseRun:
    stack = reference_stack(GEMMA, SPEC, positions=4)
    return LayerwiseRun(stack, checkpoint_weights(ArraySource(arrays)), [torch.tensor([[1, 2]])])


def logits(run: LayerwiseRun) -> list[torch.Tensor]:
    for _ in run.layers():
        pass
    parts: list[list[torch.Tensor]] = [[] for _ in run.batches]
    for batch, first, block in run.head():
        assert first == sum(part.shape[-1] for part in parts[batch])
        parts[batch].append(block.clone())
    return [torch.cat(part, dim=-1) for part in parts]


def test_a_layer_s_weights_take_the_place_of_the_last_one_s() -> None:
    """Fresh memory for each layer costs as much as reading it."""
    places = []
    for layer in own_run(source()).layers():
        places.append({name: parameter.data_ptr() for name, parameter in layer.module.named_parameters()})
    assert len(places) > 1
    assert all(set(place.values()) == set(places[0].values()) for place in places)


def assert_equals_reference(found: list[torch.Tensor]) -> None:
    model = reference_model(_CONFIG)
    for ids, own in zip(_BATCHES, found, strict=True):
        with torch.no_grad():
            expected = model(input_ids=ids).logits
        assert own.shape == expected.shape
        # another order of summation in attention, and nothing else
        assert (own - expected).abs().max() <= 1e-5 * expected.std()


def test_logits_are_those_of_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_export.layerwise.run._HEAD_ROWS", 100)
    assert_equals_reference(logits(own_run(source())))


def test_other_implementations_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own layers over the same lazy weights, with module taps."""
    config = reference_model(_CONFIG).config
    rotary = reference_model(_CONFIG).model.rotary_emb

    def meta(make):  # type: ignore[no-untyped-def]
        with torch.device("meta"):
            return make().eval()

    def call(layer: torch.nn.Module, index: int, hidden: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(hidden.shape[1])[None]
        causal = torch.full((hidden.shape[1],) * 2, float("-inf")).triu(1)[None, None]
        return layer(hidden, attention_mask=causal, position_embeddings=rotary(hidden, positions))

    stack = LayerStack(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        embedding="model.embed_tokens.weight",
        embedding_scale=config.hidden_size**0.5,
        layer=lambda index: meta(lambda: GemmaDecoderLayer(config, index)),
        call=call,
        final_softcap=0.0,
        norm=lambda: meta(lambda: GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)),
        head="lm_head.weight",
        layer_weight=lambda index, name: f"model.layers.{index}.{name}",
        norm_weight=lambda name: f"model.norm.{name}",
    )
    run = LayerwiseRun(stack, checkpoint_weights(source()), _BATCHES)
    seen = set()
    for layer in run.layers():
        layer.observe(lambda tap, tensor: seen.add(tap.name))
    assert {"self_attn.o_proj.input", "mlp.down_proj.output", "input_layernorm.output"} <= seen
    run = LayerwiseRun(stack, checkpoint_weights(source()), _BATCHES)
    assert_equals_reference(logits(run))


def test_taps_are_the_reference_s_values() -> None:
    """Inputs of projections and residual points, against hooks and hidden states of transformers."""
    run, model = own_run(source()), reference_model(_CONFIG)
    found: dict[str, torch.Tensor] = {}

    def keep(tap: Tap, tensor: torch.Tensor) -> None:
        if tap.batch == 0:
            found[str(tap)] = tensor.clone()

    for _ in run.layers(keep):
        pass
    for _ in run.head(keep):
        pass
    expected: dict[str, torch.Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "post_attention_layernorm"):
            module, tap = layer.get_submodule(name), f"layers.{index}.{name}"
            module.register_forward_hook(
                lambda _, inputs, output, tap=tap: expected.update({f"{tap}.input": inputs[0], f"{tap}.output": output})
            )
    with torch.no_grad():
        states = model(input_ids=_BATCHES[0], output_hidden_states=True).hidden_states
    expected["embedding"] = states[0]
    for index in range(len(model.model.layers)):
        expected[f"layers.{index}.attn_residual"] = expected[f"layers.{index}.post_attention_layernorm.input"]
        expected[f"layers.{index}.attn_residual.branch"] = expected[f"layers.{index}.self_attn.o_proj.output"]
        expected[f"layers.{index}.mlp_residual.branch"] = expected[f"layers.{index}.mlp.down_proj.output"]
        if index + 1 < len(model.model.layers):
            expected[f"layers.{index}.mlp_residual"] = states[index + 1]
    expected["norm.output"] = states[-1]
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4 * float(tensor.std()), msg=name)
    scores = found["layers.1.attention.scores"]
    assert scores.shape == (1, 4, 6, 6)
    assert scores.isfinite().all()


def test_a_changed_layer_changes_what_follows() -> None:
    """Calibration: look with the old weights, change them, move on with the new ones."""
    arrays = {name: np.frombuffer(data, np.float32) for name, data in source()._bytes.items()}
    shapes = {name: tensor.shape for name, tensor in source().tensors.items()}
    name = "model.layers.1.mlp.down_proj.weight"
    expected = logits(
        own_run(ArraySource({n: (a * (0.5 if n == name else 1)).reshape(shapes[n]) for n, a in arrays.items()}))
    )
    run = own_run(source())
    seen: list[str] = []
    for layer in run.layers():
        before = run.hidden[0].clone()
        layer.observe(lambda tap, tensor: seen.append(str(tap)))
        assert torch.equal(run.hidden[0], before), "observing moved the hidden states"
        if layer.index == 1:
            parameter = layer.module.get_parameter("mlp.down_proj.weight")
            parameter.mul_(0.5)
        layer.advance()
    assert seen.count("layers.2.mlp.down_proj.input") == len(_BATCHES)
    parts: list[list[torch.Tensor]] = [[] for _ in run.batches]
    for batch, _, block in run.head():
        parts[batch].append(block.clone())
    for found, other in zip(parts, expected, strict=True):
        assert torch.equal(torch.cat(found, dim=-1), other)


def test_one_layer_s_weights_at_a_time() -> None:
    spec = dataclasses.replace(SPEC, num_hidden_layers=4, windows=(0,) * 4)
    run = LayerwiseRun(
        reference_stack(GEMMA, spec, positions=4),
        checkpoint_weights(ArraySource(random_arrays(spec))),
        [torch.tensor([[1, 2, 3]])],
    )
    for layer in run.layers():
        gc.collect()
        real = [
            tensor
            for tensor in gc.get_objects()
            if type(tensor) is torch.nn.Parameter and tensor.device.type == "cpu" and tensor.shape == (24, 36)
        ]
        assert len(real) == 1
        assert layer.module.get_parameter("mlp.down_proj.weight") is real[0]
        del real


def test_gradients_and_threads_are_left_alone() -> None:
    """The caller's code between two layers, and between two blocks of logits, runs as it would anywhere."""
    torch.set_num_threads(2)
    run = own_run(source())
    for _ in run.layers():
        assert torch.is_grad_enabled()
        assert torch.get_num_threads() == 2
    for _ in run.head():
        assert torch.is_grad_enabled()
        assert torch.get_num_threads() == 2


def test_non_finite_activations_name_the_layer_and_the_tap() -> None:
    arrays = random_arrays()
    # finite weights whose product is not: about 3e20 * 3e20
    arrays["model.layers.1.mlp.gate_proj.weight"] *= np.float32(1e20)
    arrays["model.layers.1.mlp.up_proj.weight"] *= np.float32(1e20)
    run = small_run(arrays)
    with pytest.raises(
        NonFiniteError, match=r"layers\.1\.mlp\.down_proj\.input: -?(inf|nan) .*float32.* batch 0, posi"
    ) as caught:
        for _ in run.layers():
            pass
    assert caught.value.exit_code == 3


def test_non_finite_weights_are_named() -> None:
    arrays = random_arrays()
    arrays["model.layers.0.mlp.up_proj.weight"][3, 1] = np.nan
    run = small_run(arrays)
    with pytest.raises(NonFiniteError, match=r"model\.layers\.0\.mlp\.up_proj\.weight, position \[3, 1\]"):
        next(run.layers())


def test_progress_counts_every_byte_and_ends_when_left() -> None:
    stream = io.StringIO()
    run = own_run(source(), progress=LineProgress(stream, interval=0.0), label="looking")
    logits(run)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("looking: ")
    assert any("100 %" in line for line in lines)
    assert "looking: head: " in lines[-1]
    assert "stopped" not in stream.getvalue()
    layers = own_run(source(), progress=LineProgress(stream)).layers()
    next(layers)
    layers.close()
    assert "stopped at" in stream.getvalue().splitlines()[-1]


def test_embedding_takes_rows_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_export.weights._CHUNK_BYTES", 3 * 4 * 40)
    found = {}
    run = own_run(source())
    next(run.layers(lambda tap, tensor: found.setdefault(tap.batch, tensor.clone())))
    table = reference_model(_CONFIG).model.embed_tokens.weight
    for batch, ids in enumerate(_BATCHES):
        torch.testing.assert_close(found[batch], table[ids].detach() * torch.tensor(40**0.5), rtol=0, atol=0)


class TestHiddenStates:
    SHAPES = ((1, 4, 8), (2, 3, 8), (1, 1, 8))

    def test_spilled_states_are_the_same(self, tmp_path: Path) -> None:
        kept = HiddenStates(self.SHAPES)
        spilled = HiddenStates(self.SHAPES, memory_bytes=160, directory=tmp_path)
        for _ in range(2):
            for batch, shape in enumerate(self.SHAPES):
                states = torch.randn(shape)
                kept[batch], spilled[batch] = states, states
            for batch in range(len(self.SHAPES)):
                assert torch.equal(kept[batch], spilled[batch])
        # the second batch did not fit, the third did
        assert sorted(spilled._spilled) == [1]
        # nothing with a name
        assert list(tmp_path.iterdir()) == []
        spilled.close()

    def test_are_copies_in_one_place(self, tmp_path: Path) -> None:
        """Layer after layer: new memory each time would lie among what layers allocate."""
        shape = self.SHAPES[0]
        for hidden in (HiddenStates([shape]), HiddenStates([shape], memory_bytes=0, directory=tmp_path)):
            states = torch.ones(shape)
            hidden[0] = states
            states.zero_()
            assert torch.equal(hidden[0], torch.ones(shape))
            hidden.close()
        kept = HiddenStates([shape])
        kept[0] = torch.ones(shape)
        place = kept[0].data_ptr()
        kept[0] = torch.full(shape, 2.0)
        assert kept[0].data_ptr() == place
        assert torch.equal(kept[0], torch.full(shape, 2.0))

    def test_keep_the_type_of_the_run(self) -> None:
        hidden = HiddenStates([self.SHAPES[0]])
        for dtype in (torch.float32, torch.bfloat16):
            hidden[0] = torch.ones(self.SHAPES[0], dtype=dtype)
            assert hidden[0].dtype == dtype

    def test_a_spilled_run_gives_the_same_logits(self, tmp_path: Path) -> None:
        shapes = [(*ids.shape, 40) for ids in _BATCHES]
        hidden = HiddenStates(shapes, memory_bytes=0, directory=tmp_path)
        for found, expected in zip(logits(own_run(source(), hidden=hidden)), logits(own_run(source())), strict=True):
            assert torch.equal(found, expected)
        hidden.close()

    def test_nowhere_to_spill(self) -> None:
        with pytest.raises(ResourceExhaustedError, match="hidden states of 3 batches need") as caught:
            HiddenStates(self.SHAPES, memory_bytes=100)
        assert caught.value.exit_code == 5


def test_weights_may_be_any_expression() -> None:
    """GPTQ and adapters put expressions of their own in the place of stored tensors."""
    arrays = random_arrays()

    def weight(name: str) -> Weight:
        return Constant(torch.from_numpy(arrays[name]), name)

    stack = reference_stack(GEMMA, SPEC, positions=4)
    runs = [
        LayerwiseRun(stack, by, [torch.tensor([[1, 2, 3]])]) for by in (weight, checkpoint_weights(ArraySource(arrays)))
    ]
    first, second = (logits(run) for run in runs)
    assert torch.equal(first[0], second[0])


def test_require_finite_is_an_observer() -> None:
    require_finite(Tap(0, "x.output", 0), torch.ones(2, 2))
    with pytest.raises(NonFiniteError, match=r"^layers\.4\.x\.output: inf .*batch 7, position \[1, 0\]"):
        require_finite(Tap(4, "x.output", 7), torch.tensor([[0.0, 1.0], [torch.inf, 0.0]]))
