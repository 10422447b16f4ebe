"""Another model, tokenizer or vocabulary is told before anything is computed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from folders import altered

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_runtime import read_manifest
from gemma_validation.errors import FolderUnreadableError, GemmaValidationError, MismatchError, ReferenceMissingError
from gemma_validation.reference import check_folder, find_reference, open_source


def other_pieces() -> bytes:
    """The built-in tokenizer with two tokens exchanged."""
    content = json.loads((BUILTIN_DIRECTORY / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = "\u2581self", "\u2581return"
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    return json.dumps(content).encode()


def other_merges() -> bytes:
    """The same tokens, put together in another order."""
    content = json.loads((BUILTIN_DIRECTORY / "tokenizer.json").read_text())
    content["model"]["merges"].reverse()
    return json.dumps(content).encode()


def other_bos() -> bytes:
    return (BUILTIN_DIRECTORY / "tokenizer.json").read_bytes().replace(b"<bos>", b"<BOS>")


def refusal(folder: Path, given: Path) -> GemmaValidationError:
    manifest = read_manifest(folder)
    with pytest.raises(GemmaValidationError) as caught:
        open_source(find_reference(folder, manifest, given), folder, manifest)
    return caught.value


def mismatch(folder: Path, given: Path) -> str:
    error = refusal(folder, given)
    assert isinstance(error, MismatchError)
    assert error.exit_code == 3
    assert error.hint
    return error.message


def test_the_right_checkpoint_passes(local: Any) -> None:
    source = open_source(find_reference(local.folder, local.manifest), local.folder, local.manifest)
    assert source.about.name == "base"
    source.close()


def test_one_byte_of_the_weights(local: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(local.checkpoint, tmp_path / "base")
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    message = mismatch(local.folder, copy)
    assert "reference base is not what the folder was exported from: model.safetensors: expected SHA-256" in message
    entry = next(file for file in local.manifest.source.files if file.name == "model.safetensors")
    assert entry.sha256 in message


def test_a_configuration_that_was_edited(local: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(local.checkpoint, tmp_path / "base")
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"rope_theta": 10000.0', '"rope_theta": 10001.0'))
    assert "config.json: expected SHA-256" in mismatch(local.folder, copy)


def test_a_shard_that_is_not_there(local: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(local.checkpoint, tmp_path / "base")
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    error = refusal(local.folder, copy)
    assert isinstance(error, ReferenceMissingError)
    assert error.exit_code == 4


def test_other_sizes(local: Any, tmp_path: Path) -> None:
    for number, (changes, words) in enumerate(
        (
            ({"vocab_size": 3100}, "vocab_size: expected 3072, found 3100"),
            ({"num_hidden_layers": 1}, "decoder layers: expected 2, found 1"),
            ({"head_dim": 8}, r"cache of the layers"),
        )
    ):
        config = {**checkpoints.CONFIG, **changes}
        other = checkpoints.write(tmp_path / str(number), weights=checkpoints.tensors(config), **changes)
        assert words in mismatch(local.folder, other)


def test_the_family(local: Any, tmp_path: Path) -> None:
    other = checkpoints.write(tmp_path / "other", model_type="llama")
    error = refusal(local.folder, other)
    assert isinstance(error, ReferenceMissingError)
    assert "the reference other cannot be used" in error.message


def test_the_folder_has_another_tokenizer(local: Any, tmp_path: Path) -> None:
    for name, content, words in (
        ("pieces", other_pieces(), ": expected b' self', found b' return'"),
        ("merges", other_merges(), ": expected tokens ["),
        ("bos", other_bos(), ": BOS: expected 2, found None"),
    ):
        folder = altered(local.folder, tmp_path / name, {"tokenizer.json": content})
        message = mismatch(folder, local.checkpoint)
        assert "the folder's tokenizer is not that of the reference base" in message
        assert words in message


def test_tokenizer_files_saved_anew_give_the_same_tokens(local: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(local.checkpoint, tmp_path / "base")
    content = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(content, indent=3))
    manifest = local.manifest
    open_source(find_reference(local.folder, manifest, copy), local.folder, manifest).close()
    # SentencePiece reads the other file
    (copy / "tokenizer.json").unlink()
    open_source(find_reference(local.folder, manifest, copy), local.folder, manifest).close()


def test_a_reference_whose_tokenizer_is_broken(local: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(local.checkpoint, tmp_path / "base")
    (copy / "tokenizer.json").write_text("{}")
    error = refusal(local.folder, copy)
    assert isinstance(error, ReferenceMissingError)
    assert "reference base: tokenizer.json cannot be read" in error.message


def test_two_folders_of_one_checkpoint(tiny_fp32: Path, tiny_fp16: Path) -> None:
    check_folder(tiny_fp32, read_manifest(tiny_fp32), tiny_fp16, read_manifest(tiny_fp16))


def test_folders_of_two_models(tiny_fp32: Path, local: Any, tmp_path: Path) -> None:
    assert "exported from other weights: config.json: expected" in mismatch(tiny_fp32, local.folder)
    folder = altered(tiny_fp32, tmp_path / "folder", {"tokenizer.json": other_pieces()})
    assert "tokenizer is not that of the reference" in mismatch(tiny_fp32, folder)
    manifest = read_manifest(tiny_fp32)
    for what, change in (("vocab_size", {"vocab_size": 99}), ("family", {"family": "gemma2"})):
        with pytest.raises(MismatchError, match=f"{what}: expected .*, found"):
            check_folder(tiny_fp32, manifest, tiny_fp32, dataclasses.replace(manifest, **change))
    seeded = dataclasses.replace(manifest, source=dataclasses.replace(manifest.source, seed=3))
    with pytest.raises(MismatchError, match="synthetic weights: expected none, found seed 3"):
        check_folder(tiny_fp32, manifest, tiny_fp32, seeded)


def test_another_folder_without_a_readable_manifest(tiny_fp32: Path, tmp_path: Path) -> None:
    folder = altered(tiny_fp32, tmp_path / "folder", {})
    (folder / "gemma_export.json").write_text("{}")
    error = refusal(tiny_fp32, folder)
    assert isinstance(error, FolderUnreadableError)
    assert error.exit_code == 3
