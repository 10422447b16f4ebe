"""The whole folder or nothing: what is written, that it runs, and what a failure leaves behind."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tolerances
from artifact.tiny_folder import (
    ALL,
    DATA,
    EXTRA,
    HIDDEN,
    MAIN,
    VOCAB,
    LazyWeight,
    contents,
    expected,
    feeds,
    hidden_siblings,
    run_child,
    tiny_graphs,
    tiny_manifest,
    tiny_weights,
    write_tiny,
)

from gemma_export.artifact import disk
from gemma_export.artifact.lock import lock_output
from gemma_export.artifact.plan import plan_data
from gemma_export.artifact.writer import GraphFile, write_folder
from gemma_export.errors import (
    FolderError,
    InternalError,
    MissingResourceError,
    OutputError,
    ResourceExhaustedError,
)
from gemma_runtime.manifest import FileEntry, Manifest, read_manifest

WRITE = (
    "import sys; from pathlib import Path; from artifact.tiny_folder import write_tiny; write_tiny(Path(sys.argv[1]))"
)


class Recorder:
    """Keeps what the writer reports."""

    def __init__(self) -> None:
        self.stages: list[tuple[int, str]] = []
        self.done = 0
        self.finished = 0

    def start(self, total_bytes: int, label: str) -> None:
        self.stages.append((total_bytes, label))

    def advance(self, n: int) -> None:
        self.done += n

    def finish(self) -> None:
        self.finished += 1


def failing_weights(error: BaseException) -> dict[str, ir.TensorProtocol]:
    """The last tensor of the data file breaks: everything before it is on the disk by then."""

    def broken() -> np.ndarray:
        raise error

    weights = tiny_weights()
    return {**weights, "value": LazyWeight(broken, weights["value"].shape.numpy())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the writer leaves it; read only."""
    return write_tiny(tmp_path_factory.mktemp("written") / "out").directory


def run_graph(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)


@pytest.mark.parametrize("past", [0, 4])
def test_both_graphs_run_on_the_shared_weights(folder: Path, past: int) -> None:
    inputs = feeds(past=past)
    for name in (MAIN, ALL):
        onnx.checker.check_model(folder / name, full_check=True)
    logits, *present = expected(tiny_weights(), inputs)
    found_last, *present_last = run_graph(folder / MAIN, inputs)
    found_all, *present_all = run_graph(folder / ALL, inputs)
    np.testing.assert_allclose(found_all, logits, rtol=0, atol=tolerances.ONE_OPERATOR)
    np.testing.assert_allclose(found_last, logits[:, -1:], rtol=0, atol=tolerances.ONE_OPERATOR)
    for found, want in zip([*present_last, *present_all], [*present, *present], strict=True):
        np.testing.assert_allclose(found, want, rtol=0, atol=tolerances.ONE_OPERATOR)


def test_every_weight_lies_in_the_data_file_once(folder: Path) -> None:
    weights = tiny_weights()
    plan = plan_data([(name, weights[name].nbytes)] for name in ("embedding", "key", "value", "head"))
    content = (folder / DATA).read_bytes()
    assert len(content) == plan.size
    padding = bytearray(content)
    for entry in plan.ranges:
        assert content[entry.offset : entry.offset + entry.nbytes] == weights[entry.name].tobytes()
        padding[entry.offset : entry.offset + entry.nbytes] = bytes(entry.nbytes)
    assert not any(padding)
    references = [
        {tensor.name: [(entry.key, entry.value) for entry in tensor.external_data] for tensor in graph.initializer}
        for graph in (onnx.load_model(folder / name, load_external_data=False).graph for name in (MAIN, ALL))
    ]
    assert {name: references[0][name] for name in references[1]} == references[1]
    assert dict(references[0]["head"]) == {"location": "model.onnx_data", "offset": "77824", "length": "74400"}


def test_what_is_reported(tmp_path: Path) -> None:
    recorder = Recorder()
    written = write_tiny(tmp_path / "out", progress=recorder)
    assert written.directory == tmp_path / "out"
    assert written.recovered == ()
    assert written.manifest == read_manifest(tmp_path / "out")
    assert written.manifest.files == written.files
    found = contents(tmp_path / "out")
    del found["gemma_export.json"]
    assert {entry.path: entry.sha256 for entry in written.files} == found
    assert [entry.path for entry in written.files] == sorted([MAIN, ALL, DATA, *EXTRA])
    assert {entry.path: entry.kind for entry in written.files} == {
        MAIN: "graph",
        ALL: "graph",
        DATA: "data",
        "config.json": "config",
        "notes/README.md": "document",
    }
    assert written.total_bytes == sum((tmp_path / "out" / name).stat().st_size for name in found)
    assert recorder.stages == [(written.total_bytes, "writing out")]
    assert recorder.done == written.total_bytes + (tmp_path / "out" / "gemma_export.json").stat().st_size
    assert recorder.finished == 1
    assert hidden_siblings(tmp_path / "out") == []


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    write_tiny(tmp_path / "again")
    # another process, where sets and dicts of texts have another order
    run_child(WRITE, tmp_path / "other", seed=7)
    assert contents(tmp_path / "again") == contents(folder)
    assert contents(tmp_path / "other") == contents(folder)


def test_other_weights_give_other_bytes(tmp_path: Path, folder: Path) -> None:
    write_tiny(tmp_path / "out", weights=tiny_weights(seed=1))
    found, other = contents(tmp_path / "out"), contents(folder)
    assert {name for name in found if found[name] != other[name]} == {DATA, MAIN, ALL, "gemma_export.json"}


def test_writing_does_not_change_the_models(tmp_path: Path) -> None:
    graphs = tiny_graphs(tiny_weights())
    before = [dict(graph.model.graph.initializers) for graph in graphs]
    tensors = [[value.const_value for value in values.values()] for values in before]
    write_folder(tmp_path / "out", graphs=graphs, data_file=DATA, extra_files={}, manifest=tiny_manifest, force=False)
    assert [dict(graph.model.graph.initializers) for graph in graphs] == before
    after = [[value.const_value for value in values.values()] for values in before]
    assert all(a is b for old, new in zip(tensors, after, strict=True) for a, b in zip(old, new, strict=True))


def test_graphs_without_large_weights_need_no_data_file(tmp_path: Path) -> None:
    def manifest(files: Sequence[FileEntry]) -> Manifest:
        made = tiny_manifest(files)
        main = dataclasses.replace(made.graphs[0], data_files=())
        return dataclasses.replace(made, graphs=(main,), vocab_size=3)

    weights = tiny_weights(vocab=3, hidden=4)
    written = write_folder(
        tmp_path / "out",
        graphs=tiny_graphs(weights)[:1],
        data_file=DATA,
        extra_files={},
        manifest=manifest,
        force=False,
    )
    assert [entry.path for entry in written.files] == [MAIN]
    inputs = feeds() | {"input_ids": np.array([[0, 2, 1], [1, 1, 2]])}
    model = onnx.load_model(tmp_path / "out" / MAIN)
    assert model.graph.output[0].type.tensor_type.shape.dim[2].dim_value == 3
    found = run_graph(tmp_path / "out" / MAIN, inputs)[0]
    np.testing.assert_allclose(found, expected(weights, inputs)[0][:, -1:], rtol=0, atol=tolerances.ONE_OPERATOR)


def test_extra_files_are_copied(tmp_path: Path) -> None:
    large = tmp_path / "tokenizer.model"
    large.write_bytes(np.random.default_rng(0).bytes(3_000_001))
    written = write_tiny(tmp_path / "out", extra_files={"tokenizer.model": large, "a/b/empty.txt": b""})
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == large.read_bytes()
    assert (tmp_path / "out" / "a" / "b" / "empty.txt").read_bytes() == b""
    assert {entry.path: (entry.size, entry.kind) for entry in written.files if entry.kind != "graph"} == {
        DATA: ((tmp_path / "out" / DATA).stat().st_size, "data"),
        "tokenizer.model": (3_000_001, "tokenizer"),
        "a/b/empty.txt": (0, "document"),
    }


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir], ids=["missing", "a directory"])
def test_an_extra_file_that_cannot_be_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "tokenizer.model")
    with pytest.raises(MissingResourceError, match=r"to be copied to tokenizer\.model, cannot be read") as raised:
        write_tiny(tmp_path / "deep" / "out", extra_files={"tokenizer.model": tmp_path / "tokenizer.model"})
    assert raised.value.exit_code == 4
    assert str(tmp_path / "tokenizer.model") in raised.value.message
    assert not (tmp_path / "deep").exists()


def test_missing_parents_are_made(tmp_path: Path) -> None:
    write_tiny(tmp_path / "a" / "b" / "out")
    assert os.listdir(tmp_path / "a" / "b") == ["out"]


@pytest.mark.parametrize("error", [RuntimeError("half-way"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_failure_half_way_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    recorder = Recorder()
    with pytest.raises(type(error)) as raised:
        write_tiny(tmp_path / "a" / "b" / "out", weights=failing_weights(error), progress=recorder)
    assert raised.value is error
    assert os.listdir(tmp_path) == []
    # the bar is ended too
    assert (len(recorder.stages), recorder.finished) == (1, 1)


def test_a_failure_half_way_keeps_the_old_folder(tmp_path: Path) -> None:
    write_tiny(tmp_path / "out", weights=tiny_weights(seed=1))
    before = contents(tmp_path / "out")
    with pytest.raises(RuntimeError, match="half-way"):
        write_tiny(tmp_path / "out", weights=failing_weights(RuntimeError("half-way")), force=True)
    assert contents(tmp_path / "out") == before
    assert os.listdir(tmp_path) == ["out"]


def test_a_weight_that_contradicts_its_shape(tmp_path: Path) -> None:
    class Short(LazyWeight):
        def tofile(self, file: object) -> None:
            file.write(b"1234")  # type: ignore[attr-defined]

    weights = tiny_weights()
    weights["key"] = Short(lambda: np.zeros(0), weights["key"].shape.numpy())
    with pytest.raises(InternalError, match="tensor key: expected 1240 bytes, wrote 4"):
        write_tiny(tmp_path / "out", weights=weights)
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_replaced_only_by_force(tmp_path: Path, folder: Path) -> None:
    write_tiny(tmp_path / "out", weights=tiny_weights(seed=1), extra_files={"old.txt": b"old"})
    before = contents(tmp_path / "out")
    with pytest.raises(OutputError, match="exists") as raised:
        write_tiny(tmp_path / "out")
    assert raised.value.exit_code == 7
    assert contents(tmp_path / "out") == before
    write_tiny(tmp_path / "out", force=True)
    assert contents(tmp_path / "out") == contents(folder)
    assert os.listdir(tmp_path) == ["out"]


def test_an_output_that_another_export_holds_is_refused(tmp_path: Path) -> None:
    with lock_output(tmp_path / "out"), ThreadPoolExecutor(1) as other:
        error = other.submit(write_tiny, tmp_path / "out").exception()
    assert isinstance(error, OutputError)
    assert error.message == f"another export holds {tmp_path / 'out'}"
    assert os.listdir(tmp_path) == []


def test_a_disk_too_small_is_found_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    # the weights alone would fit
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: usage._replace(free=500_000))
    recorder = Recorder()
    with pytest.raises(ResourceExhaustedError, match="not enough disk space") as raised:
        write_tiny(tmp_path / "deep" / "out", progress=recorder)
    assert raised.value.exit_code == 5
    assert recorder.stages == []
    assert os.listdir(tmp_path) == []


LIMITED = """
import resource, sys
from pathlib import Path
from artifact.tiny_folder import write_tiny
from gemma_export.errors import GemmaExportError
# the first tensor fits, the second does not
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_tiny(Path(sys.argv[1]))
except GemmaExportError as error:
    print(type(error).__name__, error.exit_code, error)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file size limits")
def test_a_file_size_limit(tmp_path: Path) -> None:
    said = run_child(LIMITED, tmp_path / "deep" / "out")
    assert said.startswith("ResourceExhaustedError 5 writing ")
    assert "model.onnx_data: File too large; the folder needs" in said
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 2 MiB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_meanwhile(
    tmp_path: Path, small_disk: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Filler(Recorder):
        """Another program takes the rest of the disk once the writer has found enough free."""

        def start(self, total_bytes: int, label: str) -> None:
            super().start(total_bytes, label)
            assert small_disk is not None
            with open(small_disk / "other", "wb", buffering=0) as other:
                other.write(bytes(shutil.disk_usage(small_disk).free - 100_000))

    if small_disk is None:
        # no right to mount: the limit on a file's size is the same refusal with another number
        assert run_child(LIMITED, tmp_path / "out").startswith("ResourceExhaustedError 5 writing ")
        assert sorted(os.listdir(tmp_path)) == ["disk"]
        return
    with pytest.raises(ResourceExhaustedError, match="No space left on device; the folder needs") as raised:
        write_tiny(small_disk / "deep" / "out", progress=Filler())
    assert raised.value.exit_code == 5
    assert DATA in raised.value.message
    assert os.listdir(small_disk) == ["other"]


@pytest.mark.parametrize("number", range(1, 11))
def test_a_failing_sync_before_the_rename_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    # 6 files, 2 directories, the folder itself, its parent
    calls = 0
    original = os.fsync

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="the disk failed") as raised:
        write_tiny(tmp_path / "out")
    assert raised.value.exit_code == 7
    assert os.listdir(tmp_path) == []


def test_everything_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), fsync(handle)))
    monkeypatch.setattr(os, "rename", lambda *paths: (events.append("rename"), rename(*paths)))
    write_tiny(tmp_path / "out")
    assert events == ["sync"] * 10 + ["rename", "sync"]


KILLED = """
import os, sys
from pathlib import Path
from artifact.tiny_folder import write_tiny
from gemma_export.progress import NullProgress
class Killer(NullProgress):
    def advance(self, n):
        os._exit(9)
write_tiny(Path(sys.argv[1]), force=True, progress=Killer())
"""


def test_a_kill_while_writing_is_cleaned_up_by_the_next_export(tmp_path: Path, folder: Path) -> None:
    run_child(KILLED, tmp_path / "out", expected_exit=9)
    [left] = hidden_siblings(tmp_path / "out")
    assert left.startswith(".out.staging-")
    assert os.listdir(tmp_path) == [left]
    written = write_tiny(tmp_path / "out")
    assert written.recovered == (f"removed {left}, which an interrupted export had left",)
    assert os.listdir(tmp_path) == ["out"]
    assert contents(tmp_path / "out") == contents(folder)


# one text object for both, as a constant in a registry would be
SAME = MAIN


@pytest.mark.parametrize(
    ("files", "extra", "message"),
    [
        ((SAME, SAME), {}, "two files of the folder are called onnx/model.onnx and onnx/model.onnx"),
        ((MAIN, ALL), {SAME: b""}, "two files of the folder are called onnx/model.onnx and onnx/model.onnx"),
        ((MAIN, ALL), {"Onnx/MODEL.onnx": b""}, "called Onnx/MODEL.onnx and onnx/model.onnx"),
        ((MAIN, ALL), {DATA: b""}, "called onnx/model.onnx_data and"),
        ((MAIN, ALL), {"gemma_export.json": b"{}"}, "called gemma_export.json and gemma_export.json"),
        ((MAIN, ALL), {"a.txt": b"", "A.TXT": b""}, "called A.TXT and a.txt"),
        ((MAIN, "model_all.onnx"), {}, "expected graphs beside onnx/model.onnx_data, found model_all.onnx"),
        ((), {}, "expected graphs beside onnx/model.onnx_data, found no graph"),
        ((MAIN, ALL), {"../evil": b""}, "'../evil' is not a path inside the output folder"),
        ((MAIN, "/onnx/x.onnx"), {}, "'/onnx/x.onnx' is not a path inside the output folder"),
    ],
)
def test_names_that_contradict_each_other(
    tmp_path: Path, files: tuple[str, ...], extra: dict[str, bytes], message: str
) -> None:
    graphs = [
        GraphFile(role=str(index), file=file, logits="last", model=graph.model)
        for index, (file, graph) in enumerate(zip(files, tiny_graphs(tiny_weights()), strict=False))
    ]
    with pytest.raises(InternalError) as raised:
        write_folder(
            tmp_path / "out", graphs=graphs, data_file=DATA, extra_files=extra, manifest=tiny_manifest, force=False
        )
    assert message in raised.value.message
    assert raised.value.exit_code == 1
    assert os.listdir(tmp_path) == []


def write_with(output: Path, manifest: Callable[[Sequence[FileEntry]], Manifest]) -> None:
    write_folder(
        output, graphs=tiny_graphs(tiny_weights()), data_file=DATA, extra_files=EXTRA, manifest=manifest, force=False
    )


def test_a_manifest_must_list_what_was_written(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="does not list exactly the files that were written"):
        write_with(tmp_path / "out", lambda files: tiny_manifest(files[1:]))
    assert os.listdir(tmp_path) == []


def test_a_manifest_that_contradicts_the_graphs_is_never_published(tmp_path: Path) -> None:
    def manifest(files: Sequence[FileEntry]) -> Manifest:
        made = tiny_manifest(files)
        return dataclasses.replace(made, graphs=tuple(dataclasses.replace(g, opset=21) for g in made.graphs))

    with pytest.raises(FolderError, match=r"onnx/model\.onnx: expected opset 21, found \[23\]"):
        write_with(tmp_path / "out", manifest)
    assert os.listdir(tmp_path) == []


def test_the_tiny_folder_covers_every_region_of_the_plan() -> None:
    # the other tests lean on it: 4 KiB alignment with padding behind it, 64 bytes, and inline
    assert 4 * VOCAB * HIDDEN > 1 << 16
    assert 4 * VOCAB * HIDDEN % 4096 != 0
    assert 4 * HIDDEN < 1024 <= tiny_weights()["key"].nbytes < 1 << 16
    assert tiny_weights()["key"].nbytes % 64 != 0
