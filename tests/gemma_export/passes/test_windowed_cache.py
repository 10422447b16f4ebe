"""WindowedCache: layers with a window keep no more than it, and every logit stays."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
from graphs import PADDINGS, SPEC, Unoptimised, apply, assert_unchanged, deviation, find, semantic_model

from gemma_export.errors import PassError
from gemma_export.passes import (
    AlignRows,
    DropQueryLengths,
    FuseGroupQueryAttention,
    QuantiseCache,
    SelectLogits,
    WindowedCache,
)

_WINDOW = 5
_PARTS = ("key", "value")
_WINDOWED = dataclasses.replace(SPEC, windows=(_WINDOW, 0))
_FIRST, _SECOND = (f"model.layers.{layer}.self_attn.GroupQueryAttention" for layer in range(2))


def _fused(windows: tuple[int, int] = _WINDOWED.windows) -> ir.Model:
    return apply(semantic_model(dataclasses.replace(SPEC, windows=windows)), AlignRows(), FuseGroupQueryAttention())


def _finished(*, windowed: bool, batched: bool = True) -> ir.Model:
    model = apply(_fused(), SelectLogits(0))
    if not batched:
        apply(model, DropQueryLengths())
    return apply(model, WindowedCache()) if windowed else model


def _dims(value: ir.Value | None) -> list[int | str | None]:
    assert value is not None
    assert value.shape is not None
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def _logits(model: ir.Model, ids: np.ndarray, mask: np.ndarray, sizes: list[int], capacity: int) -> np.ndarray:
    """Every position's logits of a batch in steps of the given sizes."""
    graph = Unoptimised(model)
    graph.window_capacity = capacity
    past, found, begin = graph.empty_cache(len(ids)), [], 0
    for size in sizes:
        end = begin + size
        logits, past = graph.step(ids[:, begin:end], mask[:, :end], past)
        found.append(logits)
        begin = end
    assert begin == ids.shape[1]
    return np.concatenate(found, axis=1)


def test_only_layers_with_a_window() -> None:
    model = _finished(windowed=True)
    first, second = find(model, _FIRST), find(model, _SECOND)
    assert first.attributes["sliding_window_cache"].value == 1
    assert "sliding_window_cache" not in second.attributes
    heads, size = SPEC.num_key_value_heads, SPEC.head_dim
    for value in (*first.inputs[3:5], *first.outputs[1:3]):
        assert _dims(value) == ["batch_size", heads, "window_capacity", size]
    assert [_dims(value)[2] for value in (*second.inputs[3:5], *second.outputs[1:3])] == (
        ["past_sequence_length"] * 2 + ["total_sequence_length"] * 2
    )


@pytest.mark.parametrize("capacity", [_WINDOW, _WINDOW + 1, _WINDOW + 6])
@pytest.mark.parametrize("sizes", [[1] * 40, [7, *[1] * 33], [13, 2, 9, 1, 15], [40]], ids=str)
def test_one_row_in_steps_of_any_size(capacity: int, sizes: list[int]) -> None:
    """Eight windows, in steps shorter and longer than the cache."""
    ids = np.random.default_rng(1).integers(4, SPEC.vocab_size, (1, 40))
    mask = np.ones_like(ids)
    expected = _logits(_finished(windowed=False), ids, mask, sizes, 0)
    for batched in (True, False):
        found = _logits(_finished(windowed=True, batched=batched), ids, mask, sizes, capacity)
        assert deviation(found, expected) <= tolerances.FP32_LOGITS
    # the window is what it is about: without one other numbers come out
    everything = _logits(apply(_fused((0, 0)), SelectLogits(0)), ids, mask, sizes, 0)
    assert deviation(everything, expected) > 0.1


@pytest.mark.parametrize("capacity", [_WINDOW, _WINDOW + 3])
@pytest.mark.parametrize("padding", PADDINGS)
def test_padded_batches(padding: str, capacity: int) -> None:
    """A padded prompt longer than the window, then single tokens of each row, which evict at steps of their own."""
    width, steps, scale = 14, 9, 2
    tokens = np.random.default_rng(2).integers(4, SPEC.vocab_size, (3, width + steps))
    ids, mask = np.zeros_like(tokens), np.ones_like(tokens)
    mask[:, :width] = 0
    for row, columns in enumerate(PADDINGS[padding]):
        real = slice(columns.start * scale, columns.stop * scale)
        ids[row, real], mask[row, real] = tokens[row, real], 1
    ids[:, width:] = tokens[:, width:]
    sizes = [width, *[1] * steps]
    expected = _logits(_finished(windowed=False), ids, mask, sizes, 0)
    found = _logits(_finished(windowed=True), ids, mask, sizes, capacity)
    assert deviation(found[mask == 1], expected[mask == 1]) <= tolerances.FP32_LOGITS


def test_padded_prompts_need_the_newest_input() -> None:
    """Without query_seqlens the kernel refuses them; prompts of one length, and tokens behind any prompts, it takes."""
    ids, mask = np.full((2, 4), 5), np.array([[1, 1, 1, 1], [0, 0, 1, 1]])
    with pytest.raises(Exception, match="too small for sequence_length 4"):
        _logits(_finished(windowed=True, batched=False), ids, mask, [4], _WINDOW)
    found, expected = (
        _logits(_finished(windowed=windowed, batched=False), ids[:, :2], mask[:, 2:], [2], _WINDOW)
        for windowed in (True, False)
    )
    assert deviation(found, expected) <= tolerances.FP32_LOGITS


@pytest.mark.parametrize("capacity", [_WINDOW, _WINDOW + 4])
def test_what_is_resident(capacity: int) -> None:
    """The last L(T) tokens from the beginning on, by the operator's formula: what the runtime relies on."""
    from gemma_runtime.window_layout import WindowLayout

    layout = WindowLayout(window=_WINDOW, capacity=capacity)
    ids = np.random.default_rng(3).integers(4, SPEC.vocab_size, (1, 30))
    plain, windowed = Unoptimised(_finished(windowed=False)), Unoptimised(_finished(windowed=True))
    windowed.window_capacity = capacity
    _, whole = plain.step(ids, np.ones_like(ids))
    past, read = windowed.empty_cache(1), 0
    for size in (3, 1, 1, 1, 1, 1, 1, 7, 1, 2, 11):
        _, past = windowed.step(ids[:, read : read + size], np.ones((1, read + size)), past)
        read += size
        held = layout.resident(read)
        assert min(read, _WINDOW) <= held <= min(read, capacity)
        for index in range(2):
            assert past[index].shape[2] == capacity
            np.testing.assert_allclose(past[index][:, :, :held], whole[index][:, :, read - held : read], atol=1e-5)
    assert read == 30


@pytest.mark.parametrize("capacity", [_WINDOW, _WINDOW + 3])
def test_with_an_int8_cache(capacity: int) -> None:
    """Codes leave the window as floats do."""
    ids = np.random.default_rng(4).integers(4, SPEC.vocab_size, (1, 40))
    mask, sizes = np.ones_like(ids), [9, *[1] * 31]
    shape = (1, SPEC.num_key_value_heads, 1, SPEC.head_dim)
    scales = {
        f"past_key_values.{layer}.{part}": np.full(shape, 0.02, np.float32) for layer in (0, 1) for part in _PARTS
    }
    plain, windowed = (apply(_finished(windowed=False), QuantiseCache(scales)) for _ in range(2))
    apply(windowed, WindowedCache())
    expected = _logits(plain, ids, mask, sizes, 0)
    # a sum in another order turns a code here and there
    assert deviation(_logits(windowed, ids, mask, sizes, capacity), expected) <= tolerances.INT8_CACHE_LOGITS
    exact = _logits(_finished(windowed=False), ids, mask, sizes, 0)
    assert deviation(expected, exact) > 0


def test_a_second_run_changes_nothing() -> None:
    assert_unchanged(_finished(windowed=True), WindowedCache())


def test_no_window_no_change() -> None:
    assert_unchanged(apply(_fused((0, 0)), SelectLogits(0)), WindowedCache())


def test_two_windows_would_share_one_symbol() -> None:
    model = _fused((5, 7))
    with pytest.raises(PassError, match=r"layers have windows of \[5, 7\], expected one size") as caught:
        WindowedCache()(model)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda node: node.replace_input_with(4, node.inputs[3]), "its input 3 is no state of its own"),
        (lambda node: node.replace_input_with(3, node.inputs[0]), "its input 3 is no state of its own"),
        (lambda node: node.graph.outputs.remove(node.outputs[2]), "its output 2 is no state of its own"),
    ],
    ids=["read twice", "no input", "no output"],
)
def test_states_of_others_are_left_alone(change: object, reason: str) -> None:
    model = _fused()
    assert callable(change)
    change(find(model, _FIRST))
    with pytest.raises(PassError, match=reason):
        WindowedCache()(model)
