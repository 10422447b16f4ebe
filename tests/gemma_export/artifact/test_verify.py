"""A valid folder passes; every single change to it is found and named."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from artifact.tiny_folder import ALL, DATA, EXTRA, MAIN, alter_graph, relist, write_tiny

from gemma_export.artifact import verify
from gemma_export.artifact.verify import verify_folder
from gemma_export.errors import FolderError
from gemma_runtime.manifest import MANIFEST_FILE, read_manifest

ALTERED = "was altered: expected SHA-256"


class Recorder:
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def start(self, total_bytes: int, label: str) -> None:
        self.events.append((total_bytes, label))

    def advance(self, n: int) -> None:
        self.events.append(n)

    def finish(self) -> None:
        self.events.append("finish")


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid folder; read only."""
    return write_tiny(tmp_path_factory.mktemp("valid") / "out").directory


@pytest.fixture
def folder(valid: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(valid, tmp_path / "out")


def refused(folder: Path, *, hash_data: bool = False) -> str:
    """The message of the refusal."""
    with pytest.raises(FolderError) as raised:
        verify_folder(folder, hash_data=hash_data)
    assert raised.value.exit_code == 3
    assert raised.value.hint
    assert "\n" not in raised.value.message
    return raised.value.message


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_valid_folder(valid: Path) -> None:
    recorder = Recorder()
    report = verify_folder(valid, recorder)
    size = (valid / DATA).stat().st_size
    assert report.directory == valid
    assert report.manifest == read_manifest(valid)
    assert report.total_bytes == sum((valid / name).stat().st_size for name in (MAIN, ALL, DATA, *EXTRA))
    assert report.hashed_bytes == report.total_bytes
    # four in each graph: two large, two of more than 1 KiB
    assert report.external_tensors == 8
    assert report.extra_files == ()
    assert recorder.events == [(size, "verifying out"), size, "finish"]


def test_without_reading_the_weights(valid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(verify, "verify_hashes", never)
    recorder = Recorder()
    report = verify_folder(valid, recorder, hash_data=False)
    assert report.hashed_bytes == report.total_bytes - (valid / DATA).stat().st_size
    assert recorder.events == []


def test_a_users_own_files_are_reported_and_harmless(folder: Path) -> None:
    (folder / "notes.txt").write_bytes(b"mine")
    (folder / "empty").mkdir()
    (folder / "onnx" / "model.onnx.bak").write_bytes(b"mine")
    assert verify_folder(folder).extra_files == ("notes.txt", "onnx/model.onnx.bak")


@pytest.mark.parametrize("name", [MAIN, ALL, DATA, *EXTRA])
def test_a_missing_file(folder: Path, name: str) -> None:
    size = (folder / name).stat().st_size
    (folder / name).unlink()
    assert refused(folder) == f"{name} is missing: expected a file of {size} bytes"


@pytest.mark.parametrize("name", [MAIN, ALL, DATA, *EXTRA])
@pytest.mark.parametrize("change", [-1, 1])
def test_another_size(folder: Path, name: str, change: int) -> None:
    size = (folder / name).stat().st_size
    os.truncate(folder / name, size + change)
    assert refused(folder) == f"{name}: expected {size} bytes, found {size + change}"


@pytest.mark.parametrize("name", [MAIN, ALL, *EXTRA])
def test_an_altered_small_file(folder: Path, name: str) -> None:
    flip(folder / name, 10)
    assert refused(folder).startswith(f"{name} {ALTERED}")


@pytest.mark.parametrize("position", [0, 100_000, -1])
def test_altered_weights_are_found_only_by_reading_them(folder: Path, position: int) -> None:
    flip(folder / DATA, position)
    verify_folder(folder, hash_data=False)
    assert refused(folder, hash_data=True).startswith(f"{DATA} {ALTERED}")


def test_the_progress_is_ended_after_a_refusal(folder: Path) -> None:
    flip(folder / DATA, 0)
    recorder = Recorder()
    with pytest.raises(FolderError):
        verify_folder(folder, recorder)
    assert recorder.events[-1] == "finish"


@pytest.mark.parametrize("name", [MAIN, DATA, "config.json"])
def test_a_link_instead_of_a_file(folder: Path, valid: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(valid / name)
    assert refused(folder) == f"{name} is a symbolic link, expected a regular file"


def test_a_link_instead_of_a_directory(folder: Path, valid: Path) -> None:
    shutil.rmtree(folder / "onnx")
    (folder / "onnx").symlink_to(valid / "onnx", target_is_directory=True)
    assert "is a symbolic link" in refused(folder)


def test_a_directory_instead_of_a_file(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert refused(folder).startswith("config.json is missing")


def remove_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()


def cut_manifest(folder: Path) -> None:
    os.truncate(folder / MANIFEST_FILE, 100)


def write_manifest(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / MANIFEST_FILE).write_bytes(content)


def replace_in_manifest(old: str, new: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        text = (folder / MANIFEST_FILE).read_text("utf-8")
        assert old in text
        (folder / MANIFEST_FILE).write_text(text.replace(old, new, 1), "utf-8")

    return replace


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_manifest, "has no gemma_export.json"),
        (cut_manifest, "gemma_export.json is not JSON"),
        (write_manifest(b""), "gemma_export.json is not JSON"),
        (write_manifest(b"\xff\xfe"), "gemma_export.json is not UTF-8 text"),
        (write_manifest(b"[1]"), "gemma_export.json: the document: expected an object"),
        (replace_in_manifest('"schema_version": 3', '"schema_version": 4'), "schema_version is 4, expected 3"),
        (replace_in_manifest('"family"', '"familie"'), "gemma_export.json: family is missing"),
        (replace_in_manifest('"variant"', '"extra": 1, "variant"'), "unknown key extra"),
        (replace_in_manifest('"path": "config.json"', '"path": "../config.json"'), "expected a path inside the folder"),
        (replace_in_manifest('"path": "config.json"', '"path": "/etc/passwd"'), "expected a path inside the folder"),
        (replace_in_manifest('"file": "onnx/model.onnx"', '"file": "config.json"'), "graph files that `files` lists"),
        (replace_in_manifest('"role": "main"', '"role": "all"'), "one graph of each role, main among them"),
    ],
)
def test_a_wrong_manifest(folder: Path, change: Callable[[Path], object], message: str) -> None:
    change(folder)
    found = refused(folder)
    assert message in found
    assert "gemma_export.json" in found


def test_no_folder_at_all(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'} does not exist"
    (tmp_path / "file").write_bytes(b"")
    assert refused(tmp_path / "file") == f"{tmp_path / 'file'} is not a folder"


def test_every_graph_is_looked_into(folder: Path) -> None:
    alter_graph(folder, lambda model: model.graph.output.pop(), ALL)
    assert refused(folder).startswith(f"{ALL}: the graph's outputs differ from the manifest's")


def test_graphs_are_checked_before_the_weights_are_read(folder: Path) -> None:
    flip(folder / DATA, 0)
    alter_graph(folder, lambda model: model.graph.input.pop())
    recorder = Recorder()
    with pytest.raises(FolderError, match="the graph's inputs differ"):
        verify_folder(folder, recorder)
    assert recorder.events == []


def test_a_graph_that_is_no_graph(folder: Path) -> None:
    (folder / MAIN).write_bytes(b"not a protobuf at all")
    relist(folder, MAIN)
    assert refused(folder).startswith(f"{MAIN} is not an ONNX graph")


def test_a_graph_cut_short(folder: Path) -> None:
    os.truncate(folder / MAIN, (folder / MAIN).stat().st_size - 40)
    relist(folder, MAIN)
    assert refused(folder).startswith(f"{MAIN} is not an ONNX graph")


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_to_a_graph_is_refused_or_harmless(folder: Path, seed: int) -> None:
    source = random.Random(seed)
    content = (folder / MAIN).read_bytes()
    passed, messages = 0, []
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(source.choice((1, 1, 3))):
            damaged[source.randrange(len(damaged))] = source.choice((source.randrange(256), 255, 0))
        (folder / MAIN).write_bytes(damaged)
        relist(folder, MAIN)
        try:
            verify_folder(folder, hash_data=False)
            passed += 1
        except FolderError as error:
            messages.append(error.message)
    assert all(MAIN in message for message in messages)
    # both ends were tried
    assert min(passed, len(messages)) > 10


def test_a_manifest_whose_sizes_were_adapted_to_missing_weights(folder: Path) -> None:
    # size and hash agree, so only the graphs' references can tell
    os.truncate(folder / DATA, 80_000)
    relist(folder, DATA)
    found = refused(folder, hash_data=True)
    assert found == (
        f"{MAIN}, tensor 'key': expected bytes inside model.onnx_data (80000 bytes), found 155648 to 156888"
    )


def test_a_file_called_data_is_no_graphs_data_until_the_graph_says_so(folder: Path) -> None:
    manifest = read_manifest(folder)
    graphs = tuple(dataclasses.replace(graph, data_files=()) for graph in manifest.graphs)
    (folder / MANIFEST_FILE).write_text(dataclasses.replace(manifest, graphs=graphs).to_json(), "utf-8")
    assert "expected a location in the manifest (none), found 'model.onnx_data'" in refused(folder)
