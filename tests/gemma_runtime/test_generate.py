"""The generation loop on the built-in model, against the same graph run step by step without it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import checkpoints
import numpy as np
import onnxruntime
import pytest
from decoders import Graph
from folders import altered, rewrite_manifest

from gemma_export.pipeline import ExportRequest, export
from gemma_runtime import Gemma, Message, Sampling, read_manifest, sequence
from gemma_runtime.errors import (
    GemmaRuntimeError,
    ManifestError,
    MissingTokenizerError,
    ModelOutputError,
    PromptError,
    ProviderError,
)
from gemma_runtime.graph_choice import graph_for, release

PROMPT = "def read_file(path):\n"


@pytest.fixture(scope="module")
def generator(tiny_fp32: Path) -> Gemma:
    return Gemma(tiny_fp32)


def growing_cache_tokens(folder: Path, ids: list[int], count: int) -> list[int]:
    return Graph(folder / "onnx/model.onnx").greedy(np.array([ids]), count)


def test_greedy_equals_a_growing_cache(generator: Gemma, tiny_fp32: Path) -> None:
    result = generator.generate(PROMPT, max_new_tokens=40)
    ids = generator.tokenizer.encode(PROMPT)
    expected = growing_cache_tokens(tiny_fp32, ids, 40)
    stop = next((index for index, token in enumerate(expected) if token in generator.stop_ids), 40)
    assert list(result.token_ids) == expected[:stop]
    assert result.prompt_tokens == len(ids)
    assert result.text == generator.tokenizer.decode(result.token_ids)
    assert result.prefill_tokens_per_second > 0
    assert result.decode_tokens_per_second > 0


def test_a_second_prompt_starts_afresh(generator: Gemma) -> None:
    first = generator.generate(PROMPT, max_new_tokens=12).token_ids
    generator.generate("class Other:\n    x = 1\n", max_new_tokens=30)
    assert generator.generate(PROMPT, max_new_tokens=12).token_ids == first


def test_prefill_in_parts(generator: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generator.generate(PROMPT * 5, max_new_tokens=12).token_ids
    monkeypatch.setattr(sequence, "PREFILL_TOKENS", 7)
    assert generator.generate(PROMPT * 5, max_new_tokens=12).token_ids == whole


def test_streamed_pieces_join_to_the_text(generator: Gemma) -> None:
    answer = generator.answer(PROMPT, max_new_tokens=25)
    pieces = list(answer.pieces())
    assert "".join(piece.text for piece in pieces) == answer.completion.text
    assert tuple(piece.token_id for piece in pieces if piece.token_id is not None) == answer.completion.token_ids
    assert len(pieces) > 5


def test_one_bos_however_the_prompt_starts(generator: Gemma) -> None:
    plain = generator.generate(PROMPT, max_new_tokens=6)
    marked = generator.generate("<bos>" + PROMPT, max_new_tokens=6)
    assert marked.token_ids == plain.token_ids
    assert marked.prompt_tokens == plain.prompt_tokens


def test_sampling_is_reproducible_and_seeded(generator: Gemma) -> None:
    runs = [
        generator.generate(
            PROMPT, max_new_tokens=20, sampling=Sampling(temperature=1.5, top_k=50, top_p=0.95, seed=seed)
        )
        for seed in (1, 1, 2)
    ]
    assert runs[0].token_ids == runs[1].token_ids
    assert runs[0].token_ids != runs[2].token_ids


def test_any_of_several_stop_ids_ends_and_is_left_out(generator: Gemma, tiny_fp32: Path, tmp_path: Path) -> None:
    tokens = generator.generate(PROMPT, max_new_tokens=12).token_ids
    stop = tokens[7]
    before = tokens[: tokens.index(stop)]
    config = json.dumps({"eos_token_id": [1, stop]}).encode()
    folder = altered(tiny_fp32, tmp_path / "folder", {"generation_config.json": config})
    result = Gemma(folder).generate(PROMPT, max_new_tokens=12)
    assert result.token_ids == before
    assert result.finish_reason == "stop"


def test_end_of_turn_always_stops(generator: Gemma) -> None:
    assert generator.tokenizer.find("<end_of_turn>") in generator.stop_ids
    assert generator.tokenizer.find("<eos>") in generator.stop_ids


def test_chat_puts_gemma_turns_around_the_message(generator: Gemma) -> None:
    turns = "<start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n"
    chat = generator.generate([Message(role="user", content=" hello\n")], max_new_tokens=3)
    assert chat.prompt_tokens == len(generator.tokenizer.encode(turns))
    assert chat.token_ids == generator.generate(turns, max_new_tokens=3).token_ids


def test_context_limits(tmp_path: Path) -> None:
    export(ExportRequest(variant="tiny", context=24, output=tmp_path / "folder"))
    short = Gemma(tmp_path / "folder")
    word = " x"
    count = len(short.tokenizer.encode(word * 10)) - 1
    assert count == 10
    with pytest.raises(PromptError, match=r"the prompt has 25 tokens.*context has 24"):
        short.generate(word * 24)
    full = short.generate(word * 23, max_new_tokens=5)
    assert (full.prompt_tokens, len(full.token_ids), full.finish_reason) == (24, 1, "context")
    nearly = short.generate(word * 19, max_new_tokens=50)
    assert nearly.finish_reason in ("context", "stop")
    assert len(nearly.token_ids) <= 5


@pytest.mark.parametrize(("prompt", "tokens"), [("", 5), ("x", 0), ("\udcff", 5)])
def test_impossible_prompts(generator: Gemma, prompt: str, tokens: int) -> None:
    with pytest.raises(PromptError) as caught:
        generator.generate(prompt, max_new_tokens=tokens)
    assert caught.value.exit_code == 2


def test_sentencepiece_alone_gives_the_same_tokens(generator: Gemma, tiny_fp32: Path, tmp_path: Path) -> None:
    folder = altered(tiny_fp32, tmp_path / "folder", {"tokenizer.json": None})
    result = Gemma(folder).generate("<bos>" + PROMPT + "<|fim_suffix|>", max_new_tokens=8)
    expected = generator.generate(PROMPT + "<|fim_suffix|>", max_new_tokens=8)
    assert (result.token_ids, result.text) == (expected.token_ids, expected.text)


def test_tokenizer_of_a_larger_model(tiny_fp32: Path, tmp_path: Path) -> None:
    """Its ids would read past the embedding table."""
    content = json.loads((tiny_fp32 / "tokenizer.json").read_bytes())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {text: token + 3072 * (token >= 300) for text, token in vocabulary.items()}
    folder = altered(tiny_fp32, tmp_path / "folder", {"tokenizer.json": json.dumps(content).encode()})
    with pytest.raises(ManifestError, match="embedding has 3072 rows"):
        Gemma(folder).generate("import os")


def test_overflow_in_float16_is_an_error_not_text(tmp_path: Path) -> None:
    weights = checkpoints.tensors(checkpoints.CONFIG)
    for name in weights:
        if name.endswith("down_proj.weight"):
            weights[name] = (weights[name].astype(np.float32) * 3e5).clip(-6e4, 6e4).astype(weights[name].dtype)
    checkpoints.write(tmp_path / "model", weights=weights)
    request = ExportRequest(checkpoint=tmp_path / "model", precision="fp16", output=tmp_path / "folder")
    export(dataclasses.replace(request, residual_scale="off"))
    with pytest.raises(ModelOutputError, match="NaN or infinite") as caught:
        Gemma(tmp_path / "folder").generate("import os", max_new_tokens=3)
    assert caught.value.exit_code == 3
    assert "--residual-scale measure" in caught.value.hint
    assert "--fp32" in caught.value.hint
    # what the hint says helps
    export(dataclasses.replace(request, residual_scale="measure", force=True))
    assert Gemma(tmp_path / "folder").generate("import os", max_new_tokens=3).token_ids


def test_providers_are_never_replaced_silently(tiny_fp32: Path, tiny_fp16: Path, tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="runs on cpu, not on cuda") as caught:
        Gemma(tiny_fp32, provider="cuda")
    assert caught.value.exit_code == 8
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ProviderError, match="has no cuda provider"):
            Gemma(tiny_fp16, provider="cuda")
    shutil.copytree(tiny_fp32, tmp_path / "future")
    rewrite_manifest(tmp_path / "future", min_onnxruntime="99.1.0")
    with pytest.raises(ProviderError, match=r"needs onnxruntime 99\.1\.0 or later"):
        Gemma(tmp_path / "future")


@pytest.mark.parametrize(
    ("name", "content", "error", "phrase"),
    [
        ("onnx/model.onnx", None, ManifestError, "missing"),
        ("onnx/model.onnx_data", b"short", ManifestError, "expected 167"),
        ("tokenizer_config.json", b"{}", ManifestError, "tokenizer_config.json"),
        ("generation_config.json", b"", ManifestError, "generation_config.json"),
        ("gemma_export.json", b"{", ManifestError, "not JSON"),
        ("gemma_export.json", None, ManifestError, "has no gemma_export.json"),
    ],
)
def test_damaged_folders(
    name: str, content: bytes | None, error: type[GemmaRuntimeError], phrase: str, tiny_fp32: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(tiny_fp32, folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(error, match=phrase) as caught:
        Gemma(folder)
    assert caught.value.exit_code == 3


def test_altered_small_file_of_the_same_size(tiny_fp32: Path, tmp_path: Path) -> None:
    content = bytearray((tiny_fp32 / "tokenizer.json").read_bytes())
    content[100] ^= 1
    shutil.copytree(tiny_fp32, tmp_path / "folder")
    (tmp_path / "folder/tokenizer.json").write_bytes(content)
    with pytest.raises(ManifestError, match=r"tokenizer\.json was altered"):
        Gemma(tmp_path / "folder")


def test_no_tokenizer(tiny_fp32: Path, tmp_path: Path) -> None:
    folder = altered(tiny_fp32, tmp_path / "folder", {"tokenizer.json": None, "tokenizer.model": None})
    with pytest.raises(MissingTokenizerError) as caught:
        Gemma(folder)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("eos", ["many", -1, 10**6, [], [1, None], True, None])
def test_impossible_stop_ids(eos: object, tiny_fp32: Path, tmp_path: Path) -> None:
    config = json.dumps({"eos_token_id": eos}).encode()
    folder = altered(tiny_fp32, tmp_path / "folder", {"generation_config.json": config})
    with pytest.raises(ManifestError, match="eos_token_id"):
        Gemma(folder)


def test_float16_generates_nearly_the_same(tiny_fp16: Path, generator: Gemma) -> None:
    first = Gemma(tiny_fp16).generate(PROMPT, max_new_tokens=8).token_ids
    assert first[:4] == generator.generate(PROMPT, max_new_tokens=8).token_ids[:4]


def test_neither_torch_nor_the_exporter_is_imported(tiny_fp32: Path) -> None:
    code = (
        "import sys\nfrom gemma_runtime import Gemma\n"
        f"Gemma({str(tiny_fp32)!r}).generate('x', max_new_tokens=2)\n"
        "sys.exit(bool({'torch', 'onnx', 'onnx_ir', 'transformers', 'gemma_export'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_main_graph_that_needs_a_newer_onnxruntime(tiny_fp32: Path, tmp_path: Path) -> None:
    """The folder's own minimum is that of its least demanding graph, so the main graph is checked too."""
    folder = tmp_path / "folder"
    shutil.copytree(tiny_fp32, folder)
    graphs = read_manifest(folder).graphs
    newer = [
        dataclasses.replace(graph, min_onnxruntime="99.0.0") if graph.role == "main" else graph for graph in graphs
    ]
    rewrite_manifest(folder, graphs=tuple(newer))
    with pytest.raises(ProviderError, match=r"onnx/model\.onnx needs onnxruntime 99\.0\.0") as caught:
        Gemma(folder)
    assert caught.value.exit_code == 8


def test_only_the_batched_twin_asks_for_a_new_release(tiny_fp32: Path) -> None:
    """Padded batches in one go and their decode steps are exact; a batched chunk is refused, not computed wrongly."""
    manifest = read_manifest(tiny_fp32)
    releases = {graph.role: graph.min_onnxruntime for graph in manifest.graphs}
    assert releases == {"main": "1.20.0", "all": "1.20.0", "last8": "1.20.0", "batched": "1.32.0"}
    assert manifest.min_onnxruntime == "1.20.0"
    main, batched = (Graph(tiny_fp32 / f"onnx/model{twin}.onnx") for twin in ("", "_batched"))
    ids = np.random.default_rng(0).integers(108, 3072, (2, 12))
    for mask in (np.ones((2, 12)), np.tri(12, 12)[[4, 11]], np.tri(12, 12)[[4, 11]][:, ::-1]):
        expected, expected_state = batched.step(ids, mask)
        found, state = main.step(ids, mask)
        np.testing.assert_array_equal(found, expected)
        grown = np.concatenate((mask, np.ones((2, 1))), axis=1)
        np.testing.assert_array_equal(
            main.step(ids[:, :1], grown, state)[0], batched.step(ids[:, :1], grown, expected_state)[0]
        )
    with pytest.raises(Exception, match="batch_size must be 1"):
        main.step(ids, np.ones((2, 24)), main.step(ids, np.ones((2, 12)))[1])


def test_a_file_that_the_manifest_does_not_list_is_not_read(tiny_fp32: Path, tmp_path: Path) -> None:
    folder = altered(tiny_fp32, tmp_path / "folder", {"tokenizer.json": None})
    before = Gemma(folder).generate(PROMPT, max_new_tokens=4).token_ids
    (folder / "tokenizer.json").write_text("{}")
    assert Gemma(folder).generate(PROMPT, max_new_tokens=4).token_ids == before


@pytest.mark.parametrize("change", ["vocab_size", "dtype", "roles", "state"])
def test_a_manifest_of_another_graph(change: str, tiny_fp32: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(tiny_fp32, folder)
    made = read_manifest(folder)
    runs, everything = graph_for(made, release(onnxruntime.__version__)), made.graph("all")
    changed = {
        "roles": {
            runs.role: dataclasses.replace(runs, file=everything.file),
            "all": dataclasses.replace(everything, file=runs.file),
        },
        "state": {runs.role: dataclasses.replace(runs, state=runs.state[:2])},
    }
    changes: dict[str, dict[str, object]] = {
        "vocab_size": {"vocab_size": 3000},
        "dtype": {"precision": dataclasses.replace(made.precision, activation_dtype="bfloat16")},
    } | {name: {"graphs": tuple(new.get(g.role, g) for g in made.graphs)} for name, new in changed.items()}
    rewrite_manifest(folder, **changes[change])
    with pytest.raises(ManifestError, match=r"is not the graph that the manifest describes") as caught:
        Gemma(folder)
    assert caught.value.exit_code == 3
