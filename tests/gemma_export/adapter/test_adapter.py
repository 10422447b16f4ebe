"""Opening an adapter folder: what is missing, what is broken, and whether it was trained on another base model."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import adapters
import numpy as np
import pytest

from gemma_export.adapter import open_adapter
from gemma_export.errors import CheckpointError, ConfigError, GemmaExportError, MissingResourceError

NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
WEIGHTS = {NAME: np.zeros((4, 8), np.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return adapters.write(tmp_path / "my-lora", WEIGHTS)


def refusal(folder: Path, kind: type[GemmaExportError]) -> GemmaExportError:
    with pytest.raises(GemmaExportError) as caught:
        open_adapter(folder)
    assert type(caught.value) is kind
    assert caught.value.hint
    return caught.value


def test_takes_two_files(folder: Path) -> None:
    (folder / "README.md").write_text("x")
    (folder / "adapter_model.bin").write_bytes(b"never read")
    adapter = open_adapter(folder)
    assert adapter.name == "my-lora"
    assert [path.name for path in adapter.files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert adapter.source.tensors[NAME].shape == (4, 8)
    assert (adapter.repository, adapter.revision, adapter.config.rank) == (None, None, 4)


def test_what_is_not_there(folder: Path) -> None:
    assert "does not exist" in refusal(folder / "no" / "where", MissingResourceError).message
    for text in ("someone/gemma-lora", "x" * 5000, "a\0b"):
        error = refusal(Path(text), MissingResourceError)
        assert "does not exist" in error.message
        assert len(error.message) < 300
    assert "is not a folder" in refusal(folder / "adapter_config.json", MissingResourceError).message
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    error = refusal(folder, CheckpointError)
    assert (error.exit_code, "has no adapter_model.safetensors" in error.message) == (3, True)
    assert "adapter_model.bin only, a pickle" in error.message
    (folder / "adapter_model.bin").unlink()
    assert "has no adapter_model.safetensors" in refusal(folder, MissingResourceError).message
    (folder / "adapter_config.json").unlink()
    assert "has no adapter_config.json" in refusal(folder, MissingResourceError).message
    (folder / "config.json").write_text("{}")
    assert "--checkpoint" in refusal(folder, MissingResourceError).hint


def test_what_is_broken(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    entry = json.dumps(json.loads(content[8 : 8 + length])[NAME])
    twice = f'{{"{NAME}": {entry}, "{NAME}": {entry}}}'.encode()
    for hostile in (content[:-1], content + b"x", b"", struct.pack("<Q", len(twice)) + twice + content[8 + length :]):
        path.write_bytes(hostile)
        assert "adapter_model.safetensors is truncated or corrupt" in refusal(folder, CheckpointError).message
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    assert "holds no tensor" in refusal(folder, CheckpointError).message
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": NaN}')
    assert "adapter_config.json is not JSON" in refusal(folder, ConfigError).message


@pytest.mark.parametrize(
    ("trained_on", "exported", "warns"),
    [
        ("google/gemma-2b", "google/gemma-2b", False),
        ("Google/Gemma-2B", "google/gemma-2b", False),
        ("google/gemma-7b", "google/gemma-2b", True),
        ("someone/gemma-2b", "google/gemma-2b", True),
        ("/home/alice/models/gemma-2b", "google/gemma-2b", False),
        ("C:\\models\\gemma-2b", "google/gemma-2b", False),
        ("./gemma-2b", "google/gemma-2b", False),
        ("gemma-2b-it", "google/gemma-2b", True),
        # a local folder's name
        ("google/gemma-7b", "my-model", True),
        ("google/gemma-7b", "Gemma-7B", False),
        ("/home/alice/Gemma-7B/", "gemma-7b", False),
        (None, "google/gemma-2b", False),
        ("", "google/gemma-2b", False),
    ],
)
def test_another_base_model(trained_on: str | None, exported: str, warns: bool, tmp_path: Path) -> None:
    adapter = open_adapter(adapters.write(tmp_path / "a", WEIGHTS, base_model_name_or_path=trained_on))
    warning = adapter.base_model_warning(exported=exported, known_as=(None, exported))
    # any of its names will do
    assert adapter.base_model_warning(exported=exported, known_as=(exported, trained_on)) is None
    assert (warning is not None) == warns
    if warning is not None:
        assert repr(trained_on) in warning
        assert str(exported) in warning
