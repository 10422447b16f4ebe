"""The static twin over a cache that the main graph filled: the same numbers, with nothing but ids and mask changing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tolerances

from gemma_export.pipeline import ExportRequest, export
from gemma_export.precision import WeightOptions
from gemma_runtime import read_manifest
from gemma_runtime.doctor.providers import start_provider
from gemma_runtime.element_types import ELEMENT_TYPES
from gemma_runtime.errors import GemmaRuntimeError, ModelOutputError, PromptError, ProviderError
from gemma_runtime.manifest import Manifest
from gemma_runtime.session import PROVIDERS
from gemma_runtime.static_decode import StateBuffer, StaticGraph

_PROMPT, _STEPS, _CAPACITY = 40, 50, 96
_REQUESTS: dict[str, dict[str, Any]] = {
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
    "int4 fp16": {"precision": "fp16", "weights": WeightOptions(scheme="int4")},
}


class Pair:
    """The main graph and the static twin of one folder, over one cache or two."""

    def __init__(self, folder: Path, provider: str = "cpu") -> None:
        self.folder, self.provider, self.manifest = folder, provider, read_manifest(folder)
        self.element = ELEMENT_TYPES[self.manifest.precision.activation_dtype]
        file = folder / self.manifest.graph().file
        self.main = onnxruntime.InferenceSession(str(file), providers=[PROVIDERS[provider]])
        self.static = static_graph(folder, self.manifest, provider)
        self.prompt = np.random.default_rng(0).integers(5, self.manifest.vocab_size, _PROMPT).tolist()

    def buffers(self, seed: int) -> list[StateBuffer]:
        """A cache full of large numbers that mean nothing."""
        noise = np.random.default_rng(seed)
        found = []
        for state in self.manifest.graph("static").state:
            shape = (1, state.shape[1], _CAPACITY, state.shape[3])
            for past, present in zip(state.past, state.present, strict=True):
                content = noise.normal(scale=9, size=shape).astype(np.float32)
                stored = content.astype(self.element.storage) if self.element.is_numpy else _upper_half(content)
                value = onnxruntime.OrtValue.ortvalue_from_numpy(stored, self.provider, 0)
                found.append(StateBuffer(past=past, present=present, value=value))
        return found

    def run_main(self, buffers: Sequence[StateBuffer], ids: Sequence[int], start: int) -> np.ndarray:
        """float32 [vocab_size]: the main graph's logits after ids at positions from `start` on."""
        binding = self.main.io_binding()
        binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((1, start + len(ids)), np.int64))
        logits = np.zeros((1, 1, self.manifest.vocab_size), self.element.storage)
        binding.bind_output("logits", "cpu", 0, self.element.onnx, logits.shape, logits.ctypes.data)
        for buffer in buffers:
            place = (self.provider, 0, self.element.onnx, buffer.value.shape(), buffer.value.data_ptr())
            binding.bind_input(buffer.past, *place)
            binding.bind_output(buffer.present, *place)
        self.main.run_with_iobinding(binding)
        return self.element.to_float32(logits)[0, 0]


def _upper_half(array: np.ndarray) -> np.ndarray:
    return (array.view(np.uint32) >> 16).astype(np.uint16)


def static_graph(folder: Path, manifest: Manifest, provider: str = "cpu") -> StaticGraph:
    return StaticGraph(
        onnxruntime,
        folder,
        manifest.graph("static"),
        provider=provider,
        vocab_size=manifest.vocab_size,
        activation_dtype=manifest.precision.activation_dtype,
    )


@pytest.fixture(scope="module")
def pair(tiny_fp16: Path) -> Pair:
    return Pair(tiny_fp16)


def assert_same_steps(pair: Pair, tolerance: float) -> None:
    """A prompt on the main graph, then the same greedy steps on both; the static ones on the buffers it filled."""
    plain, shared = pair.buffers(1), pair.buffers(2)
    expected = pair.run_main(plain, pair.prompt, 0)
    found = pair.run_main(shared, pair.prompt, 0)
    decoder = pair.static.decoder(shared, capacity=_CAPACITY, length=_PROMPT)
    for step in range(_STEPS):
        best = np.sort(expected)[-2:]
        if best[1] - best[0] > 2 * tolerance * expected.std():
            assert found.argmax() == expected.argmax(), step
        token = int(expected.argmax())
        expected = pair.run_main(plain, [token], _PROMPT + step)
        found = decoder.step(token)
        assert np.abs(found - expected).max() <= tolerance * expected.std(), step
    assert decoder.length == _PROMPT + _STEPS


def test_steps_are_the_main_graphs(pair: Pair) -> None:
    assert_same_steps(pair, tolerances.FP16_LOGITS)


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(_REQUESTS))
def test_captured_steps_are_the_main_graphs(name: str, tmp_path: Path) -> None:
    started = start_provider(PROVIDERS["cuda"])
    if not started.starts:
        pytest.skip(f"CUDA does not start here: {started.reason}")
    export(ExportRequest(variant="tiny", output=tmp_path / "out", **_REQUESTS[name]))
    pair = Pair(tmp_path / "out", "cuda")
    tolerance = tolerances.BF16_LOGITS if name == "bf16" else tolerances.FP16_LOGITS
    # twice: a second cache has other addresses and needs a capture of its own
    for _ in range(2):
        assert_same_steps(pair, tolerance)
    # and another sequence on the addresses of a capture
    decoder = pair.static.decoder(pair.buffers(3), capacity=_CAPACITY)
    first = [decoder.step(token) for token in pair.prompt]
    decoder.set_length(0)
    assert np.array_equal([decoder.step(token) for token in pair.prompt], first)
    decoder.release()


def test_a_cache_from_nothing_and_back_to_an_earlier_token(pair: Pair) -> None:
    decoder = pair.static.decoder(pair.buffers(3), capacity=_CAPACITY)
    first = [decoder.step(token) for token in pair.prompt]
    whole = pair.run_main(pair.buffers(4), pair.prompt, 0)
    assert np.abs(first[-1] - whole).max() <= tolerances.FP16_LOGITS * whole.std()
    for _ in range(3):
        decoder.step(7)
    decoder.set_length(_PROMPT // 2)
    again = [decoder.step(token) for token in pair.prompt[_PROMPT // 2 :]]
    assert np.array_equal(again, first[_PROMPT // 2 :])
    decoder.set_length(0)
    assert np.array_equal([decoder.step(token) for token in pair.prompt], first)


def test_logits_are_the_callers_own(pair: Pair) -> None:
    decoder = pair.static.decoder(pair.buffers(3), capacity=_CAPACITY)
    first = decoder.step(2)
    kept = first.copy()
    decoder.step(9)
    assert first.dtype == np.float32
    assert np.array_equal(first, kept)


def test_two_caches_of_one_graph_do_not_meet(pair: Pair) -> None:
    alone = pair.static.decoder(pair.buffers(3), capacity=_CAPACITY)
    expected = [alone.step(token) for token in pair.prompt]
    first, other = (pair.static.decoder(pair.buffers(seed), capacity=_CAPACITY) for seed in (3, 4))
    for token, logits in zip(pair.prompt, expected, strict=True):
        other.step(9)
        assert np.array_equal(first.step(token), logits)
    # nothing was captured on the CPU, so nothing is forgotten
    first.release()


def test_a_full_cache(pair: Pair) -> None:
    decoder = pair.static.decoder(pair.buffers(3), capacity=_CAPACITY, length=_CAPACITY - 1)
    assert np.isfinite(decoder.step(5)).all()
    for _ in range(2):
        with pytest.raises(PromptError, match="the cache is full: it holds 96 tokens") as caught:
            decoder.step(5)
        assert caught.value.hint == "Shorten prompt and answer, or make the cache larger."
    assert decoder.length == _CAPACITY


@pytest.mark.parametrize("length", [-1, _CAPACITY + 1])
def test_impossible_lengths(pair: Pair, length: int) -> None:
    with pytest.raises(PromptError, match=f"a cache of 96 tokens cannot hold {length}"):
        pair.static.decoder(pair.buffers(3), capacity=_CAPACITY, length=length)


def test_a_step_that_fails_leaves_the_length(pair: Pair) -> None:
    decoder = pair.static.decoder(pair.buffers(3), capacity=_CAPACITY)
    expected = [decoder.step(token) for token in pair.prompt[:3]]
    decoder.set_length(2)
    # no row of the embedding table: onnxruntime's CPU provider says so
    with pytest.raises(ModelOutputError, match=r"onnxruntime could not run onnx/model_fp16_static\.onnx"):
        decoder.step(pair.manifest.vocab_size)
    assert decoder.length == 2
    assert np.array_equal(decoder.step(pair.prompt[2]), expected[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda buffers: buffers[1:], r"past_key_values\.0\.key: None, expected \[1, 2, 96, 64\]"),
        (lambda buffers: [*buffers, buffers[0]], "one comes twice"),
    ],
    ids=["missing", "twice"],
)
def test_other_buffers_than_the_graphs(pair: Pair, change: Any, message: str) -> None:
    with pytest.raises(GemmaRuntimeError, match=message):
        pair.static.decoder(change(pair.buffers(3)), capacity=_CAPACITY)


def test_buffers_of_another_capacity(pair: Pair) -> None:
    with pytest.raises(GemmaRuntimeError, match=r"key: \[1, 2, 96, 64\], expected \[1, 2, 97, 64\]"):
        pair.static.decoder(pair.buffers(3), capacity=_CAPACITY + 1)


def test_a_provider_without_graphs(pair: Pair) -> None:
    with pytest.raises(ProviderError, match=r"model_fp16_static\.onnx runs on cpu and cuda, not on directml"):
        static_graph(pair.folder, pair.manifest, "directml")


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this one has CUDA")
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available:UserWarning")
def test_no_silent_fallback(pair: Pair) -> None:
    with pytest.raises(ProviderError, match="could not start the cuda provider and fell back to CPUExecutionProvider"):
        static_graph(pair.folder, pair.manifest, "cuda")


def test_a_graph_that_does_not_load(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match=r"cannot load onnx/model_fp16_static\.onnx on cpu"):
        static_graph(tmp_path, pair.manifest)
