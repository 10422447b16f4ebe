"""Tensors from single and sharded safetensors: exact bytes, and an index that is never trusted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gemma_export.checkpoint.safetensors_source import SafetensorsSource, weight_files
from gemma_export.errors import CheckpointError, GemmaExportError, MissingResourceError
from gemma_export.tensors import StoredTensor

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed": (7, 5), "layers.0.q": (4, 6), "layers.1.q": (3,), "norm": (5,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def write_index(directory: Path, weight_map: Any) -> None:
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(content))


def write_sharded(directory: Path, dtype: torch.dtype = torch.bfloat16) -> dict[str, str]:
    """Two shards and their index, which is also returned."""
    whole = tensors(dtype)
    shards = {FIRST: ["embed", "layers.0.q"], SECOND: ["layers.1.q", "norm"]}
    for shard, names in shards.items():
        save_file({name: whole[name] for name in names}, directory / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    write_index(directory, weight_map)
    return weight_map


def open_source(directory: Path) -> SafetensorsSource:
    return SafetensorsSource(*weight_files(directory))


def read(source: SafetensorsSource, name: str, offset: int, size: int) -> bytes:
    buffer = bytearray(size)
    source.read_into(name, offset, memoryview(buffer))
    return bytes(buffer)


def refusal(directory: Path, kind: type[GemmaExportError] = CheckpointError) -> GemmaExportError:
    with pytest.raises(GemmaExportError) as caught:
        open_source(directory)
    assert type(caught.value) is kind
    assert caught.value.message.isprintable()
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_are_the_librarys(tmp_path: Path, dtype: str, sharded: bool) -> None:
    whole = tensors(DTYPES[dtype])
    if sharded:
        write_sharded(tmp_path, DTYPES[dtype])
    else:
        save_file(whole, tmp_path / "model.safetensors")
    source = open_source(tmp_path)
    assert source.tensors == {name: StoredTensor(dtype, tuple(tensor.shape)) for name, tensor in whole.items()}
    for name, tensor in whole.items():
        expected = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        size = source.tensors[name].nbytes
        assert read(source, name, 0, size) == expected
        for offset, count in ((0, 1), (1, size - 2), (size - 1, 1), (size, 0)):
            assert read(source, name, offset, count) == expected[offset : offset + count]


def test_the_index_names_the_shards(tmp_path: Path) -> None:
    weight_map = write_sharded(tmp_path)
    # not part of the checkpoint: the index does not name it
    save_file({"stale": torch.zeros(1)}, tmp_path / "model-00003-of-00003.safetensors")
    assert weight_files(tmp_path) == ((tmp_path / FIRST, tmp_path / SECOND), weight_map)


def test_the_index_goes_before_a_single_file(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "other" not in open_source(tmp_path).tensors


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "..\\model.safetensors",
        "shards/model.safetensors",
        "/etc/model.safetensors",
        "C:model.safetensors",
        "C:\\model.safetensors",
        "\\\\server\\share\\model.safetensors",
        "model.safetensors\0.safetensors",
        "model\n.safetensors",
        "\x1b[2J.safetensors",
        "model.bin",
        "model.safetensors/",
        "",
        "..",
        None,
        1,
        True,
        ["model.safetensors"],
        {"file": "model.safetensors"},
    ],
)
def test_an_index_stays_in_its_folder(tmp_path: Path, shard: object) -> None:
    folder = tmp_path / "checkpoint"
    (folder / "shards").mkdir(parents=True)
    for place in (tmp_path, folder, folder / "shards"):
        save_file(tensors(), place / "model.safetensors")
    write_index(folder, {"embed": shard})
    error = refusal(folder)
    assert f"{INDEX} puts tensor 'embed' into {str(shard)!r}, expected the name of a .safetensors" in error.message
    assert "sources you do not trust" in error.hint


def test_shards_may_be_links(tmp_path: Path) -> None:
    """As in the Hub's cache, where every file is a link to a blob."""
    blob = tmp_path / "blob"
    save_file(tensors(), blob)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    try:
        (folder / "model.safetensors").symlink_to(blob)
    except OSError:
        pytest.skip("this user may not make links")
    assert read(open_source(folder), "norm", 0, 10) == tensors()["norm"].view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("weight_map", [None, {}, [], "model.safetensors", 1])
def test_an_index_needs_a_weight_map(tmp_path: Path, weight_map: object) -> None:
    write_index(tmp_path, weight_map)
    assert refusal(tmp_path).message == f"{INDEX} has no weight_map"


def test_an_index_without_a_weight_map_key(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text("{}")
    assert refusal(tmp_path).message == f"{INDEX} has no weight_map"


def test_missing_shards_are_counted_and_named(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / SECOND).unlink()
    assert refusal(tmp_path).message == f"{tmp_path.name}: 1 of 2 shards are missing, first {SECOND}"
    (tmp_path / FIRST).unlink()
    assert f"2 of 2 shards are missing, first {FIRST}" in refusal(tmp_path).message
    (tmp_path / FIRST).mkdir()
    assert "2 of 2 shards are missing" in refusal(tmp_path).message


@pytest.mark.parametrize("name", ["a" * 300, "\N{SNOWMAN}" * 100, "a" * 100_000])
def test_a_shard_name_longer_than_any_files_is_missing(tmp_path: Path, name: str) -> None:
    write_index(tmp_path, {"embed": f"{name}.safetensors"})
    assert "1 of 1 shards are missing" in refusal(tmp_path).message


def test_a_tensor_in_another_shard_than_the_index_says(tmp_path: Path) -> None:
    weight_map = write_sharded(tmp_path)
    write_index(tmp_path, weight_map | {"norm": FIRST})
    assert refusal(tmp_path).message == f"{INDEX} puts tensor 'norm' into {FIRST}, but it is in {SECOND}"


def test_a_tensor_that_no_shard_has(tmp_path: Path) -> None:
    weight_map = write_sharded(tmp_path)
    write_index(tmp_path, weight_map | {"lm_head\n": FIRST})
    assert refusal(tmp_path).message == f"{INDEX} puts tensor 'lm_head\\n' into {FIRST}, but no shard has it"


def test_a_tensor_twice(tmp_path: Path) -> None:
    whole = tensors()
    write_sharded(tmp_path)
    save_file({name: whole[name] for name in ("embed", "layers.1.q", "norm")}, tmp_path / SECOND)
    error = refusal(tmp_path)
    assert error.message == f"tensor 'embed' is in {FIRST} and in {SECOND}"
    assert "mixed" in error.hint


def test_a_shard_with_a_broken_header(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    os.truncate(tmp_path / SECOND, (tmp_path / SECOND).stat().st_size - 1)
    assert f"{SECOND} is truncated or corrupt" in refusal(tmp_path).message


@pytest.mark.parametrize(
    ("files", "phrase"),
    [
        ([], "--synthetic-weights"),
        (["README.md"], "--synthetic-weights"),
        (["adapter_config.json", "adapter_model.safetensors"], "This is an adapter: give it with --adapter"),
        (["adapter_model.bin"], "This is an adapter: give it with --adapter"),
        ([SECOND], f"{SECOND} is there: a sharded checkpoint needs its {INDEX}"),
        ([FIRST, "pytorch_model.bin"], f"{FIRST} is there"),
    ],
)
def test_no_weights_says_what_is_there_instead(tmp_path: Path, files: list[str], phrase: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"\x80\x02.")
    error = refusal(tmp_path, MissingResourceError)
    assert error.exit_code == 4
    assert error.message == f"{tmp_path.name}: no weights: neither model.safetensors nor {INDEX} is there"
    assert phrase in error.hint


@pytest.mark.parametrize("files", [["pytorch_model.bin"], ["consolidated.00.pt", "x.pth"], ["x.ckpt"], ["x.pkl"]])
def test_pickles_are_bad_input(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"\x80\x02.")
    error = refusal(tmp_path, CheckpointError)
    assert error.exit_code == 3
    assert f"{tmp_path.name} has its weights as {files[0]} only, a pickle" in error.message
    assert "save_pretrained" in error.hint


def test_a_file_cut_after_its_header_was_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, path)
    source = open_source(tmp_path)
    os.truncate(path, path.stat().st_size - 3)
    assert read(source, "a", 0, 16) == torch.ones(4).numpy().tobytes()
    assert read(source, "b", 0, 13) == torch.ones(4).numpy().tobytes()[:13]
    with pytest.raises(CheckpointError, match=r"^model.safetensors is truncated: tensor 'b' ends 3 bytes early$"):
        read(source, "b", 0, 16)
    os.truncate(path, 0)
    with pytest.raises(CheckpointError, match=r"tensor 'a' ends 16 bytes early"):
        read(source, "a", 0, 16)


def test_a_file_removed_after_its_header_was_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4)}, path)
    source = open_source(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"^model.safetensors: tensor 'a' cannot be read: No such file") as caught:
        read(source, "a", 0, 16)
    assert isinstance(caught.value.__cause__, OSError)
