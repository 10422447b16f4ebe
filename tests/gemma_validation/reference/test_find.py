"""Where a reference is looked for, and what is said when it is not there."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import adapters
import checkpoints
import pytest
from folders import rewrite_manifest
from huggingface_hub import constants

from gemma_export.checkpoint import BUILTIN_DIRECTORIES, BUILTIN_DIRECTORY, GENERATOR_VERSION
from gemma_runtime import Manifest, read_manifest
from gemma_runtime.manifest import AdapterSource
from gemma_validation.errors import MismatchError, ReferenceMissingError, ValidationUsageError
from gemma_validation.reference import FoundReference, find_reference, open_reference
from gemma_validation.reference.source_files import first_difference

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def with_source(manifest: Manifest, **changes: Any) -> Manifest:
    return dataclasses.replace(manifest, source=dataclasses.replace(manifest.source, **changes))


def cached(cache: Path, repository: str, content: Path) -> Path:
    """Puts a folder's files into a Hub cache as a commit."""
    folder = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT
    shutil.copytree(content, folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_built_in_model(tiny_fp32: Path) -> None:
    found = find_reference(tiny_fp32, read_manifest(tiny_fp32))
    assert found == FoundReference(kind="checkpoint", path=BUILTIN_DIRECTORY, name="built-in")


@pytest.mark.parametrize(("variant", "name"), [("tiny2", "tiny2"), ("tiny", "tiny"), ("other", "tiny"), (None, "tiny")])
def test_one_of_several_built_in_models(variant: str | None, name: str, tiny_fp32: Path) -> None:
    manifest = dataclasses.replace(read_manifest(tiny_fp32), variant=variant)
    assert find_reference(tiny_fp32, manifest).path == BUILTIN_DIRECTORIES[name]


def test_a_local_checkpoint_beside_the_export(local: Any) -> None:
    found = find_reference(local.folder, local.manifest)
    assert (found.kind, found.path, found.name) == ("checkpoint", local.checkpoint, "base")


def test_a_local_checkpoint_in_the_working_directory(
    local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(local.folder, tmp_path / "elsewhere/folder")
    monkeypatch.chdir(local.checkpoint.parent)
    assert find_reference(folder, local.manifest).path == local.checkpoint


def test_a_local_checkpoint_that_is_gone(local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(local.folder, tmp_path / "elsewhere/folder")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ReferenceMissingError, match="checkpoint 'base' is not here: no folder of that name in"
    ) as error:
        find_reference(folder, local.manifest)
    assert "--reference" in error.value.hint
    assert error.value.exit_code == 4


def test_a_folder_of_that_name_that_is_another_checkpoint(
    local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(local.folder, tmp_path / "folder")
    checkpoints.write(tmp_path / "base", rope_theta=500.0)
    monkeypatch.chdir(tmp_path / "folder")
    with pytest.raises(ReferenceMissingError, match=r"base is another one \(config.json: expected \d+ bytes"):
        find_reference(folder, local.manifest)


def test_a_manifest_that_points_elsewhere(local: Any) -> None:
    with pytest.raises(ReferenceMissingError, match="is no name of the checkpoint's folder"):
        find_reference(local.folder, with_source(local.manifest, name="../base"))
    file = dataclasses.replace(local.manifest.source.files[0], name="../config.json")
    assert first_difference(local.checkpoint, [file]) == "'../config.json' is no file name"


def test_a_repository_in_the_hub_cache(local: Any, cache: Path) -> None:
    manifest = with_source(local.manifest, kind="hub", repository="some/model", revision=COMMIT, name=None)
    with pytest.raises(ReferenceMissingError, match=r"some/model at commit 0123.*not in the Hub cache") as error:
        find_reference(local.folder, manifest)
    assert f"hf download some/model --revision {COMMIT}" in error.value.hint
    snapshot = cached(cache, "some/model", local.checkpoint)
    found = find_reference(local.folder, manifest)
    assert (found.path, found.name) == (snapshot, "some/model")
    # the command line gives a path, and Windows writes it with a backslash
    for given in ("some/model", PurePosixPath("some/model"), PureWindowsPath("some/model")):
        found = find_reference(local.folder, manifest, given)
        assert (found.path, found.name) == (snapshot, "some/model")


def test_synthetic_weights_of_a_variant(tiny_fp32: Path, tiny_fp16: Path) -> None:
    manifest = dataclasses.replace(
        with_source(read_manifest(tiny_fp32), kind="synthetic", seed=3, generator_version=GENERATOR_VERSION, files=()),
        variant="2b",
    )
    found = find_reference(tiny_fp32, manifest)
    assert (found.path, found.name) == (None, "synthetic 2b, seed 3")
    opened = open_reference(found, manifest)
    # nothing of it is in memory
    assert opened.float32_bytes == 4 * 2_506_172_416
    assert not opened.plain
    assert opened.weight("model.layers.17.mlp.down_proj.weight").shape == (2048, 16384)
    assert find_reference(tiny_fp32, manifest, tiny_fp16).kind == "folder"
    with pytest.raises(MismatchError, match="generated from seed 3, no checkpoint has them"):
        find_reference(tiny_fp32, manifest, BUILTIN_DIRECTORY)
    with pytest.raises(ReferenceMissingError, match="variant 'gone'"):
        open_reference(found, dataclasses.replace(manifest, variant="gone"))


def test_synthetic_weights_of_another_release(tiny_fp32: Path) -> None:
    manifest = with_source(read_manifest(tiny_fp32), kind="synthetic", seed=3, generator_version=99)
    with pytest.raises(MismatchError, match="generator 99, this release has generator 1"):
        find_reference(tiny_fp32, manifest)


def test_what_the_user_gives(local: Any, tiny_fp32: Path, tmp_path: Path) -> None:
    manifest = local.manifest
    golden = tmp_path / "pack.golden"
    golden.write_bytes(b"x")
    for given, kind in ((local.checkpoint, "checkpoint"), (tiny_fp32, "folder"), (golden, "golden")):
        for form in (given, str(given)):
            found = find_reference(local.folder, manifest, form)
            assert (found.kind, found.path, found.name) == (kind, given, given.name)


def test_what_the_user_gives_wrongly(local: Any, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for given, words in (
        (tmp_path / "empty", "neither config.json nor gemma_export.json"),
        (tmp_path / "nowhere", "does not exist, and is no repository in the Hub cache"),
        ("some/model", "does not exist, and is no repository in the Hub cache"),
        (local.checkpoint / "model.safetensors", "a file of safetensors, which is no golden pack"),
    ):
        with pytest.raises(ReferenceMissingError, match=words) as error:
            find_reference(local.folder, local.manifest, given)
        assert str(given) in error.value.message


def test_the_merged_adapter(local: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(local.folder, tmp_path / "out/folder")
    shutil.copytree(local.checkpoint, tmp_path / "out/base")
    lora = adapters.write(tmp_path / "lora", adapters.tensors({"model.layers.0.self_attn.q_proj.weight": (64, 32)}))
    entry = AdapterSource(repository=None, revision=None, name="lora", ranks=(4,), files=())
    manifest = rewrite_manifest(folder, source=dataclasses.replace(local.manifest.source, adapter=entry))
    assert find_reference(folder, manifest).adapter == lora
    shutil.move(lora, tmp_path / "out/lora")
    assert find_reference(folder, manifest).adapter == tmp_path / "out/lora"
    # another folder needs none: it was merged there too
    assert find_reference(folder, manifest, local.folder).adapter is None
    shutil.rmtree(tmp_path / "out/lora")
    with pytest.raises(ReferenceMissingError, match="adapter 'lora', which was merged into the weights, is not here"):
        find_reference(folder, manifest)
    hub = dataclasses.replace(entry, repository="some/lora", revision=COMMIT, name=None)
    manifest = with_source(manifest, adapter=hub)
    with pytest.raises(ReferenceMissingError, match=r"adapter some/lora at commit .* is not in the Hub cache"):
        find_reference(folder, manifest)
    (tmp_path / "content").mkdir()
    (tmp_path / "content/adapter_config.json").write_text("{}")
    snapshot = cached(cache, "some/lora", tmp_path / "content")
    assert find_reference(folder, manifest).adapter == snapshot


def test_a_folder_is_not_its_own_reference(tiny_fp32: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_fp32, target_is_directory=True)
    for path in (tiny_fp32, tmp_path / "link"):
        with pytest.raises(ValidationUsageError, match="agree with itself"):
            find_reference(tiny_fp32, read_manifest(tiny_fp32), path)
