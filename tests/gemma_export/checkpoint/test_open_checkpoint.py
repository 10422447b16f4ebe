"""Opening a checkpoint folder: what is taken, what is missing, what is broken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gemma_export.checkpoint import (
    BUILTIN_DIRECTORY,
    SafetensorsSource,
    SyntheticSource,
    builtin_checkpoint,
    open_checkpoint,
    synthetic_checkpoint,
)
from gemma_export.errors import CheckpointError, ConfigError, GemmaExportError, MissingResourceError

CONFIG = {"model_type": "gemma", "hidden_size": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete checkpoint."""
    path = tmp_path / "my-gemma"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "generation_config.json").write_text('{"eos_token_id": 1}')
    (path / "tokenizer.json").write_text("{}")
    (path / "tokenizer.model").write_bytes(b"model")
    save_file({"a": torch.ones(4)}, path / "model.safetensors")
    return path


def refusal(folder: Path, kind: type[GemmaExportError], *, weights: bool = True) -> GemmaExportError:
    with pytest.raises(GemmaExportError) as caught:
        open_checkpoint(folder, weights=weights)
    assert type(caught.value) is kind
    assert caught.value.hint
    return caught.value


def test_takes_everything_there_is(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}")
    (folder / "README.md").write_text("not part of it")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    checkpoint = open_checkpoint(folder)
    tokenizer = ["tokenizer.json", "tokenizer.model", "special_tokens_map.json", "chat_template.jinja"]
    assert checkpoint.name == "my-gemma"
    assert checkpoint.config == CONFIG
    assert checkpoint.generation_config == {"eos_token_id": 1}
    assert checkpoint.tokenizer_files == {name: folder / name for name in tokenizer}
    assert checkpoint.has_tokenizer
    assert isinstance(checkpoint.source, SafetensorsSource)
    names = ["config.json", "generation_config.json", *tokenizer, "model.safetensors"]
    assert checkpoint.files == tuple(folder / name for name in names)
    assert (checkpoint.builtin, checkpoint.seed) == (False, None)


def test_sharded_weights_are_listed_shard_by_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "b.safetensors")
    save_file({"c": torch.ones(4)}, folder / "a.safetensors")
    index = {"weight_map": {"a": "b.safetensors", "c": "a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(folder)
    assert [path.name for path in checkpoint.files[-2:]] == ["a.safetensors", "b.safetensors"]
    assert checkpoint.source is not None
    assert set(checkpoint.source.tensors) == {"a", "c"}


def test_the_name_is_the_folders_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert open_checkpoint(Path()).name == "my-gemma"


def test_without_weights_none_are_needed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refusal(folder, MissingResourceError)
    checkpoint = open_checkpoint(folder, weights=False)
    assert checkpoint.source is None
    assert all(path.suffix != ".safetensors" for path in checkpoint.files)


@pytest.mark.parametrize(
    ("names", "has"),
    [
        ([], False),
        (["tokenizer_config.json", "added_tokens.json"], False),
        (["tokenizer.json"], True),
        (["tokenizer.model"], True),
    ],
)
def test_a_tokenizer_may_be_absent(folder: Path, names: list[str], has: bool) -> None:
    for name in ("tokenizer.json", "tokenizer.model", "generation_config.json"):
        (folder / name).unlink()
    for name in names:
        (folder / name).write_text("{}")
    checkpoint = open_checkpoint(folder)
    assert list(checkpoint.tokenizer_files) == names
    assert checkpoint.has_tokenizer is has
    assert checkpoint.generation_config is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
def test_an_empty_tokenizer_file(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    assert refusal(folder, ConfigError).message == f"{name} is empty"


def test_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "absent"
    error = refusal(path, MissingResourceError)
    assert error.message == f"checkpoint {path} does not exist"
    assert error.exit_code == 4
    path.write_text("a file")
    assert refusal(path, MissingResourceError).message == f"checkpoint {path} is not a folder"


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_no_configuration(folder: Path, kind: str) -> None:
    (folder / "config.json").unlink()
    if kind == "folder":
        (folder / "config.json").mkdir()
    assert refusal(folder, MissingResourceError).message == f"checkpoint {folder} has no config.json"


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"a": 1,}',
        b"{'a': 1}",
        b'{"a": \xff}',
        b"\xff\xfe{\x00}\x00",
        b"<!DOCTYPE html>",
        b'{"a": ' + b"9" * 5000 + b"}",
        b"NaN",
        b'{"a": Infinity}',
        b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_broken_json(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    error = refusal(folder, ConfigError)
    assert error.message.startswith(f"{name} is not JSON: ")
    assert error.exit_code == 3


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("content", "found"),
    [("[]", "list"), ("1", "int"), ("null", "NoneType"), ('"gemma"', "str"), ("true", "bool")],
)
def test_json_that_is_no_object(folder: Path, name: str, content: str, found: str) -> None:
    (folder / name).write_text(content)
    assert refusal(folder, ConfigError).message == f"{name}: expected a JSON object, found {found}"


def test_a_byte_order_mark_is_no_error(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(CONFIG).encode())
    assert open_checkpoint(folder).config == CONFIG


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_huge_json_is_refused_unread(folder: Path, name: str) -> None:
    limit = 64 << 20
    if not (folder / name).exists():
        (folder / name).touch()
    # a hole in the file: nothing is written
    os.truncate(folder / name, limit + 1)
    error = refusal(folder, CheckpointError)
    assert error.message == f"{name}: expected at most {limit} bytes of JSON, found {limit + 1}"


def test_a_broken_weight_file(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 40)
    assert "model.safetensors is truncated or corrupt" in refusal(folder, CheckpointError).message
    # not looked at where synthetic weights take their place
    assert open_checkpoint(folder, weights=False).config == CONFIG


def test_builtin_checkpoint() -> None:
    checkpoint = builtin_checkpoint()
    assert checkpoint.builtin
    assert checkpoint.has_tokenizer
    assert checkpoint.config["model_type"] == "gemma"
    assert checkpoint.source is not None
    assert checkpoint.source.tensors["model.embed_tokens.weight"].shape == (3072, 256)
    assert builtin_checkpoint(weights=False).source is None
    assert {path.parent for path in checkpoint.files} == {BUILTIN_DIRECTORY}


def test_synthetic_weights_take_the_place_of_the_real_ones(folder: Path) -> None:
    checkpoint = synthetic_checkpoint(open_checkpoint(folder, weights=False), {"a": (3, 2)}, seed=7)
    assert isinstance(checkpoint.source, SyntheticSource)
    assert checkpoint.source.tensors["a"].shape == (3, 2)
    assert (checkpoint.seed, checkpoint.source.seed, checkpoint.name) == (7, 7, "my-gemma")
    assert checkpoint.config == CONFIG
