"""gemma-run on folders of every target and precision: same text, other state and steps."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from folders import rewrite_manifest
from programs import assert_error, gemma_run

from gemma_export.pipeline import ExportRequest, export
from gemma_runtime import TextGenerator, generate, read_manifest
from gemma_runtime.element_types import ELEMENT_TYPES
from gemma_runtime.errors import ProviderError
from gemma_runtime.state import Buffer, GrowingState, InPlaceState, make_state

PROMPT = "def read_file(path):\n"


@pytest.fixture(scope="module", params=["portable", "directml"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("targets") / request.param
    export(ExportRequest(variant="tiny", target=request.param, output=output))
    return output


def test_same_text_as_the_ort_folder(folder: Path, tiny_fp32: Path) -> None:
    found = TextGenerator(folder).generate(PROMPT, max_new_tokens=40)
    assert found.token_ids == TextGenerator(tiny_fp32).generate(PROMPT, max_new_tokens=40).token_ids


def test_a_second_prompt_starts_afresh(folder: Path) -> None:
    generator = TextGenerator(folder)
    first = generator.generate(PROMPT, max_new_tokens=12).token_ids
    generator.generate("class Other:\n    x = 1\n", max_new_tokens=30)
    assert generator.generate(PROMPT, max_new_tokens=12).token_ids == first


def test_prefill_in_parts_only_where_kernels_allow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DirectML's attention would take a second part for a new prompt, so the prompt goes through whole."""
    generator = TextGenerator(folder)
    whole = generator.generate(PROMPT * 5, max_new_tokens=12).token_ids
    steps: list[int] = []
    step = generator._session.step
    monkeypatch.setattr(generate, "_PREFILL_TOKENS", 7)
    monkeypatch.setattr(generator._session, "step", lambda ids: (steps.append(len(ids)), step(ids))[1])
    assert generator.generate(PROMPT * 5, max_new_tokens=12).token_ids == whole
    longest = 7 if read_manifest(folder).graph().chunks == "batched" else steps[0]
    assert max(steps) == longest
    assert (steps.count(7) > 1) == (longest == 7)


def test_a_step_that_the_kernel_would_misread_is_refused(folder: Path) -> None:
    generator = TextGenerator(folder)
    session = generator._session
    session.reset(8)
    session.step([2, 5, 6])
    if session.chunked:
        session.step([7, 8])
    else:
        with pytest.raises(ProviderError, match="takes a prompt whole"):
            session.step([7, 8])
    session.step([9])


def test_state_follows_the_cache_layout(folder: Path) -> None:
    manifest = read_manifest(folder)
    made = make_state(onnxruntime, manifest.graph(), cache_layout=manifest.cache_layout, capacity=4, device="cpu")
    assert isinstance(made, {"columns": GrowingState, "compacted": InPlaceState}[manifest.cache_layout])


def test_main_graph_with_several_positions(folder: Path, tmp_path: Path) -> None:
    """The last of them is what is read, in prefill and in decode steps."""
    target = read_manifest(folder).target
    export(ExportRequest(variant="tiny", target=target, logits="3", output=tmp_path / "folder"))
    found = TextGenerator(tmp_path / "folder").generate(PROMPT, max_new_tokens=10).token_ids
    assert found == TextGenerator(folder).generate(PROMPT, max_new_tokens=10).token_ids


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bf16") / "folder"
    export(ExportRequest(variant="tiny", precision="bf16", output=output))
    return output


def test_bf16_needs_cuda(bf16: Path) -> None:
    assert_error(gemma_run(bf16, PROMPT), 8, "runs on cuda", "not on cpu", "no bfloat16 kernels", "--provider cuda")


def test_bf16_loads_nowhere_else_even_if_the_manifest_says_so(bf16: Path, tmp_path: Path) -> None:
    """What a hand-edited manifest would meet: onnxruntime's own refusal, told as exit code 8."""
    shutil.copytree(bf16, tmp_path / "folder")
    rewrite_manifest(tmp_path / "folder", providers=("cpu",))
    with pytest.raises(ProviderError, match="cannot load") as caught:
        TextGenerator(tmp_path / "folder")
    assert caught.value.exit_code == 8


def test_bfloat16_bits_become_float32() -> None:
    element = ELEMENT_TYPES["bfloat16"]
    bits = np.array([0x3F80, 0xBF80, 0x0000, 0x4049, 0x7F80], np.uint16)
    np.testing.assert_array_equal(element.to_float32(bits), np.array([1, -1, 0, 3.140625, np.inf], np.float32))


def test_a_buffer_bound_by_pointer_is_what_the_session_reads_and_writes(tiny_fp32: Path) -> None:
    """bfloat16 buffers are bound by address under their true type; float32 ones must behave the same way."""
    manifest = read_manifest(tiny_fp32)
    session = onnxruntime.InferenceSession(str(tiny_fp32 / manifest.graph().file), providers=["CPUExecutionProvider"])

    class Pointer(Buffer):
        """Binds as a bfloat16 buffer does."""

        def bind_input(self, binding: object, name: str) -> None:
            binding.bind_input(name, "cpu", 0, self.element.onnx, self.shape, self._value.data_ptr())  # type: ignore[attr-defined]

        def bind_output(self, binding: object, name: str) -> None:
            binding.bind_output(name, "cpu", 0, self.element.onnx, self.shape, self._value.data_ptr())  # type: ignore[attr-defined]

    outputs = []
    for kind in (Buffer, Pointer):
        binding = session.io_binding()
        element = ELEMENT_TYPES["float32"]
        logits = kind(onnxruntime, (1, 1, manifest.vocab_size), element, "cpu")
        logits.bind_output(binding, "logits")
        state = manifest.graph().state
        caches = []
        for layer in state:
            for past, present in zip(layer.past, layer.present, strict=True):
                cache = kind(onnxruntime, (1, layer.shape[1], 4, layer.shape[3]), element, "cpu")
                cache.bind_input(binding, past)
                cache.bind_output(binding, present)
                caches.append(cache)
        binding.bind_cpu_input("input_ids", np.array([[2, 200, 300]], np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((1, 3), np.int64))
        session.run_with_iobinding(binding)
        outputs.append([logits.float32(), *(cache.float32() for cache in caches)])
    for first, second in zip(*outputs, strict=True):
        assert np.abs(first).max() > 0
        np.testing.assert_array_equal(first, second)
