"""gemma-export --adapter ORG/NAME on a real local Hub: the same export as from the folder, pinned and recorded."""

from __future__ import annotations

from pathlib import Path

import adapters
import checkpoints
import pytest
from hub_server import COMMIT, HubServer, Repository
from programs import assert_error, gemma_export

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.checkpoint.json_file import read_json
from gemma_export.families import FAMILIES
from gemma_runtime import read_manifest

pytestmark = pytest.mark.usefixtures("hub")


def _adapter(directory: Path, config: dict[str, object]) -> Path:
    family = FAMILIES["gemma"]
    shapes = family.tensor_shapes(family.parse_config(config)[0])
    adapters.write(directory, adapters.tensors(shapes))
    return directory


def test_an_adapter_of_the_hub_is_the_same_export(hub: HubServer, tmp_path: Path) -> None:
    local = _adapter(tmp_path / "my-lora", read_json(BUILTIN_DIRECTORY / "config.json"))
    repository = Repository.of_folder(local)
    repository.files |= {"README.md": b"never fetched", "optimizer.pt": b"never fetched"}
    hub.repositories["org/my-lora"] = repository
    outputs = {"local": str(local), "hub": "org/my-lora", "pinned": f"org/my-lora@{COMMIT[:8]}"}
    for name, adapter in outputs.items():
        result = gemma_export(
            "--variant", "tiny", "--adapter", adapter, "--output", name, cwd=tmp_path, **hub.environment(tmp_path)
        )
        assert result.returncode == 0, result.stderr
    data = {name: (tmp_path / name / "onnx/model.onnx_data").read_bytes() for name in outputs}
    assert data["local"] == data["hub"] == data["pinned"]
    found = read_manifest(tmp_path / "hub").source.adapter
    assert found is not None
    assert (found.repository, found.revision, found.name) == ("org/my-lora", COMMIT, "my-lora")
    asked = {request.path.split(f"{COMMIT}/")[1] for request in hub.asked("/resolve/")}
    assert asked == {"adapter_config.json", "adapter_model.safetensors"}


def test_checkpoint_and_adapter_both_of_the_hub(hub: HubServer, tmp_path: Path) -> None:
    """The adapter names its base model, and the checkpoint says which repository it is."""
    hub.repositories["org/base"] = Repository.of_folder(checkpoints.write(tmp_path / "base"))
    local = _adapter(tmp_path / "lora", checkpoints.CONFIG)
    hub.repositories["org/lora"] = Repository.of_folder(local)
    command = ("--checkpoint", "org/base", "--adapter", "org/lora")
    planned = gemma_export(*command, "--dry-run", cwd=tmp_path, **hub.environment(tmp_path))
    assert planned.returncode == 0, planned.stderr
    assert "download: " in planned.stdout
    result = gemma_export(*command, "--output", "out", cwd=tmp_path, **hub.environment(tmp_path))
    assert result.returncode == 0, result.stderr
    source = read_manifest(tmp_path / "out").source
    assert (source.repository, source.revision) == ("org/base", COMMIT)
    assert source.adapter is not None
    assert source.adapter.repository == "org/lora"


def _refused(hub: HubServer, directory: Path, adapter: str, code: int, *phrases: str) -> None:
    result = gemma_export("--variant", "tiny", "--adapter", adapter, cwd=directory, **hub.environment(directory))
    assert_error(result, code, *phrases)
    assert not list(directory.glob("gemma-*"))


def test_repositories_that_are_no_adapter(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/model"] = Repository({"config.json": b"{}", "model.safetensors": b"x"})
    hub.repositories["org/pickle"] = Repository({"adapter_config.json": b"{}", "adapter_model.bin": b"x"})
    hub.repositories["org/notes"] = Repository({"README.md": b"x"})
    _refused(hub, tmp_path, "org/model", 3, "no adapter_config.json", "whole model", "--checkpoint")
    _refused(hub, tmp_path, "org/pickle", 3, "no adapter_model.safetensors", "pickle", "run any code")
    _refused(hub, tmp_path, "org/notes", 3, "no adapter_config.json", "no PEFT adapter")


def test_repositories_and_revisions_that_are_not_there(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/lora"] = Repository({"adapter_config.json": b"{}"})
    _refused(hub, tmp_path, "org/laro", 4, "org/laro")
    _refused(hub, tmp_path, "org/lora@gone", 4, "gone")
    _refused(hub, tmp_path, "org/lora@a..b", 2, "can be no branch")
    _refused(hub, tmp_path, "no/such/folder", 4, "does not exist", "ORG/NAME")
