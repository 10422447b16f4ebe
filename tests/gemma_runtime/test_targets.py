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
from gemma_runtime import Gemma, read_manifest, sequence
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
    found = Gemma(folder).generate(PROMPT, max_new_tokens=40)
    assert found.token_ids == Gemma(tiny_fp32).generate(PROMPT, max_new_tokens=40).token_ids


def test_a_second_prompt_starts_afresh(folder: Path) -> None:
    generator = Gemma(folder)
    first = generator.generate(PROMPT, max_new_tokens=12).token_ids
    generator.generate("class Other:\n    x = 1\n", max_new_tokens=30)
    assert generator.generate(PROMPT, max_new_tokens=12).token_ids == first


def test_prefill_in_parts_only_where_kernels_allow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DirectML's attention would take a second part for a new prompt, so the prompt goes through whole."""
    model = Gemma(folder, speculation="off")
    whole = model.generate(PROMPT * 5, max_new_tokens=12).token_ids
    steps: list[int] = []
    step = sequence.TokenSequence.step
    monkeypatch.setattr(sequence, "PREFILL_TOKENS", 7)
    monkeypatch.setattr(sequence.TokenSequence, "step", lambda self, ids: (steps.append(len(ids)), step(self, ids))[1])
    assert model.generate(PROMPT * 5, max_new_tokens=12).token_ids == whole
    longest = 7 if read_manifest(folder).graph().chunks == "batched" else steps[0]
    assert max(steps) == longest
    assert (steps.count(7) > 1) == (longest == 7)


def test_a_step_that_the_kernel_would_misread_is_refused(folder: Path) -> None:
    model = Gemma(folder)
    tokens = model.sequence()
    tokens.step([2, 5, 6])
    if read_manifest(folder).graph().chunks == "none":
        with pytest.raises(ProviderError, match="takes a prompt whole"):
            tokens.step([7, 8])
    else:
        tokens.step([7, 8])
    tokens.step([9])


def test_going_back_forgets(folder: Path) -> None:
    """What was appended after a length leaves no trace: one way or other the same logits."""
    model = Gemma(folder)
    tokens, again = model.sequence(), model.sequence()
    for sequence_of, others in ((tokens, [11, 12, 13]), (again, [])):
        sequence_of.step([2, 5, 6])
        for token in others:
            sequence_of.step([token])
        sequence_of.truncate(3)
    np.testing.assert_array_equal(tokens.step([7]), again.step([7]))
    assert tokens.tokens == [2, 5, 6, 7]


def test_state_follows_the_cache_layout(folder: Path) -> None:
    manifest = read_manifest(folder)
    made = make_state(onnxruntime, manifest.graph(), cache_layout=manifest.cache_layout, capacity=4, device="cpu")
    assert isinstance(made, {"columns": GrowingState, "compacted": InPlaceState}[manifest.cache_layout])


def test_main_graph_with_several_positions(folder: Path, tmp_path: Path) -> None:
    """The last of them is what is read, in prefill and in decode steps."""
    target = read_manifest(folder).target
    export(ExportRequest(variant="tiny", target=target, logits="3", output=tmp_path / "folder"))
    found = Gemma(tmp_path / "folder").generate(PROMPT, max_new_tokens=10).token_ids
    assert found == Gemma(folder).generate(PROMPT, max_new_tokens=10).token_ids


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
        Gemma(tmp_path / "folder")
    assert caught.value.exit_code == 8


def test_bfloat16_bits_become_float32() -> None:
    element = ELEMENT_TYPES["bfloat16"]
    bits = np.array([0x3F80, 0xBF80, 0x0000, 0x4049, 0x7F80], np.uint16)
    np.testing.assert_array_equal(element.to_float32(bits), np.array([1, -1, 0, 3.140625, np.inf], np.float32))


def test_a_buffer_bound_by_pointer_is_what_the_session_reads_and_writes(tiny_fp32: Path) -> None:
    """Buffers are bound by address, so that bfloat16, which numpy lacks, can be bound under its true type."""
    manifest = read_manifest(tiny_fp32)
    session = onnxruntime.InferenceSession(str(tiny_fp32 / manifest.graph().file), providers=["CPUExecutionProvider"])

    ids, mask = np.array([[2, 200, 300]], np.int64), np.ones((1, 3), np.int64)
    states = [
        (layer, *names) for layer in manifest.graph().state for names in zip(layer.past, layer.present, strict=True)
    ]
    feeds = {past: np.zeros((1, layer.shape[1], 0, layer.shape[3]), np.float32) for layer, past, _ in states}
    names = ["logits", *(present for _, _, present in states)]
    expected = session.run(names, {"input_ids": ids, "attention_mask": mask, **feeds})
    binding = session.io_binding()
    element = ELEMENT_TYPES["float32"]
    logits = Buffer(onnxruntime, (1, 1, manifest.vocab_size), element, "cpu")
    logits.bind_output(binding, "logits")
    caches = []
    for layer, past, present in states:
        cache = Buffer(onnxruntime, (1, layer.shape[1], 4, layer.shape[3]), element, "cpu")
        cache.bind_input(binding, past)
        cache.bind_output(binding, present)
        caches.append(cache)
    binding.bind_cpu_input("input_ids", ids)
    binding.bind_cpu_input("attention_mask", mask)
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(logits.float32(), expected[0])
    for cache, present in zip(caches, expected[1:], strict=True):
        assert np.abs(present).max() > 0
        np.testing.assert_array_equal(cache.float32()[:, :, :3], present)
