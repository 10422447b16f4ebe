"""The output folder appears whole or not at all: every refusal, every kill point, every row of output.py's table."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from artifact.tiny_folder import DATA, contents, hidden_siblings, run_child, tiny_weights, write_tiny

from gemma_export.artifact.output import check_output, claim_output, publish, staged
from gemma_export.errors import OutputError

STAGING, REPLACED = ".out.staging-0123abcd", ".out.replaced-0123abcd"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that stood there before; read only."""
    return write_tiny(tmp_path_factory.mktemp("old") / "old", extra_files={"old/a.txt": b"a", "b.txt": b"b"}).directory


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that an export makes; read only."""
    return write_tiny(tmp_path_factory.mktemp("new") / "new", weights=tiny_weights(seed=1)).directory


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "out"


def lay(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def recover(output: Path) -> tuple[str, ...]:
    with claim_output(output, force=True) as claim:
        assert claim.output == output
        return claim.recovered


def export(output: Path, new: Path, *, force: bool = True) -> None:
    """What the writer does, without its writing."""
    with claim_output(output, force=force), staged(output) as staging:
        lay(new, staging.folder)
        publish(staging, force=force)


# what a dead export leaves


@pytest.mark.parametrize("complete", [True, False])
def test_staging_alone_is_removed(output: Path, new: Path, complete: bool) -> None:
    lay(new, output.parent / STAGING)
    if not complete:
        (output.parent / STAGING / "gemma_export.json").unlink()
    assert recover(output) == (f"removed {STAGING}, which an interrupted export had left",)
    assert os.listdir(output.parent) == []


def test_staging_beside_an_output_is_removed(output: Path, old: Path, new: Path) -> None:
    lay(old, output)
    lay(new, output.parent / STAGING)
    assert recover(output) == (f"removed {STAGING}, which an interrupted export had left",)
    assert os.listdir(output.parent) == ["out"]
    assert contents(output) == contents(old)


def test_a_complete_replacement_is_moved_in(output: Path, old: Path, new: Path) -> None:
    lay(old, output.parent / REPLACED)
    lay(new, output.parent / STAGING)
    assert recover(output) == ("finished replacing out, which had been interrupted",)
    assert os.listdir(output.parent) == ["out"]
    assert contents(output) == contents(new)


def test_recovery_comes_before_the_refusal_of_an_existing_folder(output: Path, old: Path, new: Path) -> None:
    lay(old, output.parent / REPLACED)
    lay(new, output.parent / STAGING)
    with pytest.raises(OutputError, match="out exists"), claim_output(output, force=False):
        pass
    assert os.listdir(output.parent) == ["out"]
    assert contents(output) == contents(new)


def test_a_replaced_folder_alone_is_moved_back(output: Path, old: Path) -> None:
    lay(old, output.parent / REPLACED)
    assert recover(output) == ("restored out, which an interrupted export had moved aside",)
    assert os.listdir(output.parent) == ["out"]
    assert contents(output) == contents(old)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def alter(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"gemma", b"gamma"))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("gemma_export.json", Path.unlink),
        ("gemma_export.json", cut),
        ("onnx/model_all.onnx", Path.unlink),
        ("config.json", alter),
        (DATA, cut),
    ],
)
def test_the_old_folder_returns_when_the_new_one_is_damaged(
    output: Path, old: Path, new: Path, name: str, damage: Callable[[Path], None]
) -> None:
    lay(old, output.parent / REPLACED)
    lay(new, output.parent / STAGING)
    damage(output.parent / STAGING / name)
    assert recover(output) == ("restored out, which an interrupted export had moved aside",)
    assert os.listdir(output.parent) == ["out"]
    assert contents(output) == contents(old)


def test_the_rest_of_a_replaced_folder_is_removed(output: Path, old: Path, new: Path) -> None:
    lay(new, output)
    lay(old / "onnx", output.parent / REPLACED / "onnx")
    assert recover(output) == (f"removed {REPLACED}, the rest of a folder that had been replaced",)
    assert os.listdir(output.parent) == ["out"]
    assert contents(output) == contents(new)


def test_all_three_together_are_left_to_the_user(output: Path, old: Path, new: Path) -> None:
    for path in (output, output.parent / REPLACED):
        lay(old, path)
    lay(new, output.parent / STAGING)
    before = contents(output.parent)
    with pytest.raises(OutputError, match="which of them is meant is unclear") as raised:
        recover(output)
    assert raised.value.exit_code == 7
    assert all(name in raised.value.message for name in (str(output), STAGING, REPLACED))
    assert contents(output.parent) == before


def test_several_dead_exports(output: Path, old: Path, new: Path) -> None:
    lay(new, output.parent / ".out.staging-00000000")
    lay(new, output.parent / ".out.staging-11111111")
    lay(old, output.parent / ".out.replaced-22222222")
    assert len(recover(output)) == 3
    assert os.listdir(output.parent) == ["out"]
    assert contents(output) == contents(old)


def test_names_of_others_are_left_alone(output: Path, old: Path, new: Path) -> None:
    place = output.parent
    for name in (".out.staging-xyz", ".out.staging-0123ABCD", ".other.staging-0123abcd", "out.staging-0123abcd"):
        lay(new, place / name)
    lay(old, place / ".my.out.replaced-0123abcd")
    (place / ".out.staging-00000000").write_bytes(b"a file")
    (place / ".out.replaced-11111111").symlink_to(old)
    before = contents(place)
    assert recover(output) == ()
    assert contents(place) == before
    assert len(os.listdir(place)) == 7


# kills

KILLED = """
import os, shutil, sys
from pathlib import Path
from gemma_export.artifact import output as module

output, new, name, number, moment = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]
original = getattr(os, name)
calls = 0

def deadly(*args, **kwargs):
    global calls
    calls += 1
    if calls == number and moment == "before":
        os._exit(9)
    original(*args, **kwargs)
    if calls == number and moment == "after":
        os._exit(9)

if not new:
    setattr(os, name, deadly)
with module.claim_output(output, force=True), module.staged(output) as staging:
    shutil.copytree(new, staging.folder, dirs_exist_ok=True)
    setattr(os, name, deadly)
    module.publish(staging, force=True)
"""

REMOVED = "removed {}, which an interrupted export had left"
FINISHED = "finished replacing out, which had been interrupted"
RESTORED = "restored out, which an interrupted export had moved aside"
REST = "removed {}, the rest of a folder that had been replaced"


def kinds(output: Path) -> list[str]:
    """What stands there: staging, replaced, out."""
    return sorted(name.removeprefix(".out.").partition("-")[0] for name in os.listdir(output.parent))


@pytest.mark.parametrize(
    ("name", "number", "moment", "left", "said", "stands"),
    [
        ("rename", 1, "before", ["out", "staging"], REMOVED, "old"),
        ("rename", 1, "after", ["replaced", "staging"], FINISHED, "new"),
        ("rename", 2, "before", ["replaced", "staging"], FINISHED, "new"),
        ("rename", 2, "after", ["out", "replaced"], REST, "new"),
        ("unlink", 1, "after", ["out", "replaced"], REST, "new"),
        ("unlink", 6, "after", ["out", "replaced"], REST, "new"),
        ("rmdir", 3, "after", ["out"], None, "new"),
    ],
)
def test_a_kill_while_replacing(
    output: Path, old: Path, new: Path, name: str, number: int, moment: str, left: list[str], said: str, stands: str
) -> None:
    lay(old, output)
    run_child(KILLED, output, new, name, number, moment, expected_exit=9)
    assert kinds(output) == left
    sibling = (hidden_siblings(output) or [""])[0]
    assert recover(output) == (() if said is None else (said.format(sibling),))
    assert os.listdir(output.parent) == ["out"]
    assert contents(output) == contents({"old": old, "new": new}[stands])
    # and the next export is none the wiser
    export(output, old)
    assert os.listdir(output.parent) == ["out"]
    assert contents(output) == contents(old)


@pytest.mark.parametrize(("moment", "left"), [("before", ["staging"]), ("after", ["out"])])
def test_a_kill_while_publishing_a_first_folder(output: Path, new: Path, moment: str, left: list[str]) -> None:
    run_child(KILLED, output, new, "rename", 1, moment, expected_exit=9)
    assert kinds(output) == left
    siblings = hidden_siblings(output)
    assert recover(output) == tuple(REMOVED.format(name) for name in siblings)
    assert os.listdir(output.parent) == (["out"] if moment == "after" else [])
    if moment == "after":
        assert contents(output) == contents(new)


@pytest.mark.parametrize(
    ("damaged", "name", "number", "moment", "left", "said", "stands"),
    [
        (False, "rename", 1, "before", ["replaced", "staging"], FINISHED, "new"),
        (False, "rename", 1, "after", ["out", "replaced"], REST, "new"),
        (False, "unlink", 2, "after", ["out", "replaced"], REST, "new"),
        (True, "rename", 1, "before", ["replaced", "staging"], RESTORED, "old"),
        (True, "rename", 1, "after", ["out", "staging"], REMOVED, "old"),
        (True, "unlink", 2, "after", ["out", "staging"], REMOVED, "old"),
    ],
)
def test_a_kill_while_recovering(
    output: Path,
    old: Path,
    new: Path,
    damaged: bool,
    name: str,
    number: int,
    moment: str,
    left: list[str],
    said: str,
    stands: str,
) -> None:
    lay(old, output.parent / REPLACED)
    lay(new, output.parent / STAGING)
    if damaged:
        cut(output.parent / STAGING / DATA)
    run_child(KILLED, output, "", name, number, moment, expected_exit=9)
    assert kinds(output) == left
    sibling = hidden_siblings(output)[0]
    assert recover(output) == (said.format(sibling),)
    assert os.listdir(output.parent) == ["out"]
    assert contents(output) == contents({"old": old, "new": new}[stands])


# refusals of the file system, and Ctrl-C


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError(errno.EACCES, "Permission denied"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["refused", "interrupted"],
)
def test_a_failing_rename_puts_the_old_folder_back(
    output: Path,
    old: Path,
    new: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: BaseException,
    expected: type[BaseException],
) -> None:
    lay(old, output)
    calls = 0
    original = os.rename

    def rename(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise error
        original(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(expected) as raised:
        export(output, new)
    if isinstance(raised.value, OutputError):
        assert raised.value.exit_code == 7
        assert f"writing {output}: Permission denied" in raised.value.message
    assert os.listdir(output.parent) == ["out"]
    assert contents(output) == contents(old)


def test_an_interrupt_right_after_the_first_rename_puts_the_old_folder_back(
    output: Path, old: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(old, output)
    original = os.rename
    interrupts = iter([KeyboardInterrupt()])

    def rename(source: Path, target: Path) -> None:
        original(source, target)
        for interrupt in interrupts:
            raise interrupt

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        export(output, new)
    assert os.listdir(output.parent) == ["out"]
    assert contents(output) == contents(old)


def test_once_the_new_folder_stands_a_failure_leaves_it_and_nothing_else(
    output: Path, old: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(old, output)
    original = os.rename

    def rename(source: Path, target: Path) -> None:
        original(source, target)
        if target == output:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        export(output, new)
    assert os.listdir(output.parent) == ["out"]
    assert contents(output) == contents(new)


@pytest.mark.parametrize("force", [True, False])
def test_what_appears_meanwhile_is_not_overwritten(output: Path, new: Path, force: bool) -> None:
    def export_slowly() -> None:
        with claim_output(output, force=force), staged(output) as staging:
            lay(new, staging.folder)
            output.mkdir()
            (output / "thesis.tex").write_bytes(b"years of work")
            publish(staging, force=force)

    with pytest.raises(OutputError, match="is not an exported folder" if force else "exists"):
        export_slowly()
    assert os.listdir(output.parent) == ["out"]
    assert os.listdir(output) == ["thesis.tex"]


# staging


def test_staging_makes_parents_and_removes_them_again(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b" / "out"

    def stage_and_fail() -> None:
        with staged(output) as staging:
            assert staging.folder.is_dir()
            assert staging.folder.parent == output.parent
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        stage_and_fail()
    assert os.listdir(tmp_path) == []


def test_parents_that_others_use_by_then_stay(tmp_path: Path) -> None:
    def stage_and_fail() -> None:
        with staged(tmp_path / "a" / "b" / "out"):
            (tmp_path / "a" / "theirs").mkdir()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        stage_and_fail()
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(tmp_path / "a") == ["theirs"]


def test_a_name_too_long_for_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="File name too long"), staged(tmp_path / "a" / ("x" * 250)):
        pass
    assert os.listdir(tmp_path) == []


# what may be replaced


def test_a_first_export_needs_no_force(output: Path, new: Path) -> None:
    check_output(output, False)
    export(output, new, force=False)
    assert contents(output) == contents(new)


def test_an_existing_folder_needs_force(output: Path, old: Path, new: Path) -> None:
    lay(old, output)
    with pytest.raises(OutputError, match="out exists") as raised:
        check_output(output, False)
    assert raised.value.exit_code == 7
    assert "--force" in raised.value.hint
    check_output(output, True)
    export(output, new)
    assert contents(output) == contents(new)
    assert os.listdir(output.parent) == ["out"]


def test_an_empty_folder_may_be_replaced_by_force(output: Path, new: Path) -> None:
    output.mkdir()
    with pytest.raises(OutputError, match="out exists"):
        check_output(output, False)
    export(output, new)
    assert contents(output) == contents(new)


def a_foreign_folder(output: Path, old: Path) -> None:
    output.mkdir()
    (output / "thesis.tex").write_bytes(b"years of work")


def a_folder_with_a_folder_called_like_the_manifest(output: Path, old: Path) -> None:
    (output / "gemma_export.json").mkdir(parents=True)


def a_link_to_a_folder_of_ours(output: Path, old: Path) -> None:
    output.symlink_to(old, target_is_directory=True)


def a_link_to_nowhere(output: Path, old: Path) -> None:
    output.symlink_to(output.parent / "nowhere")


def a_file(output: Path, old: Path) -> None:
    output.write_bytes(b"a file")


def a_file_as_parent(output: Path, old: Path) -> None:
    shutil.rmtree(output.parent)
    output.parent.write_bytes(b"a file")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (a_foreign_folder, "is not an exported folder: it has no gemma_export.json"),
        (a_folder_with_a_folder_called_like_the_manifest, "is not an exported folder"),
        (a_link_to_a_folder_of_ours, "is a symbolic link"),
        (a_link_to_nowhere, "is a symbolic link"),
        (a_file, "exists and is a file"),
        (a_file_as_parent, "place is a file"),
    ],
)
def test_what_is_refused_even_with_force(
    output: Path, old: Path, new: Path, make: Callable[[Path, Path], None], message: str
) -> None:
    make(output, old)
    before = contents(output.parent.parent), contents(old)
    for attempt in (lambda: check_output(output, True), lambda: export(output, new)):
        with pytest.raises(OutputError, match=message) as raised:
            attempt()
        assert raised.value.exit_code == 7
        assert str(output) in raised.value.message
    assert (contents(output.parent.parent), contents(old)) == before


@pytest.mark.parametrize("name", [STAGING, ".x.replaced-00000000"])
def test_names_of_temporary_folders_are_no_outputs(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="named like the temporary folder of an export"):
        check_output(tmp_path / name, False)


def test_a_root_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be an output folder"):
        check_output(Path(tmp_path.anchor), True)


def test_other_spellings_of_one_place(output: Path, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = output.parent
    (place.parent / "link").symlink_to(place, target_is_directory=True)
    monkeypatch.chdir(place)
    for spelling in (Path("out"), place / "x" / ".." / "out", place.parent / "link" / "out"):
        lay(new, place / STAGING)
        with claim_output(spelling, force=True) as claim:
            assert claim.output == output
            assert len(claim.recovered) == 1
            # the same lock as well: this thread may take it, and it is the same file
            with claim_output(output, force=True) as again:
                assert again.recovered == ()


needs_rights = pytest.mark.skipif(not hasattr(os, "setresuid"), reason="no system calls to become another user")


@pytest.fixture
def place_of_a_user(output: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of a user who is not root and who is us until the test's end."""
    # a first claim imports what later ones need: another user may not see Python's own directories
    recover(output)
    root = os.geteuid() == 0
    if root:
        os.setresuid(65534, 65534, 0)
    place = Path(tempfile.mkdtemp())
    try:
        (place / "cache").mkdir()
        monkeypatch.setenv("GEMMA_EXPORT_CACHE", str(place / "cache"))
        (place / "closed" / "inner").mkdir(parents=True)
        yield place
    finally:
        (place / "closed").chmod(0o700)
        shutil.rmtree(place)
        if root:
            os.setresuid(0, 0, 0)


@needs_rights
@pytest.mark.parametrize(
    ("mode", "name"),
    [(0o500, "out"), (0o400, "out"), (0, "out"), (0o600, "inner/out"), (0o400, "inner/deep/out"), (0, "inner/out")],
)
def test_a_place_without_the_right_to_write(place_of_a_user: Path, mode: int, name: str) -> None:
    closed = place_of_a_user / "closed"
    closed.chmod(mode)
    for attempt in (lambda: check_output(closed / name, False), lambda: recover(closed / name)):
        with pytest.raises(OutputError, match=r"no right to write in|Permission denied") as raised:
            attempt()
        assert raised.value.exit_code == 7
        assert str(closed) in raised.value.message


@needs_rights
@pytest.mark.parametrize("mode", [0o400, 0])
def test_an_old_folder_without_the_right_to_look_inside(place_of_a_user: Path, mode: int) -> None:
    closed = place_of_a_user / "closed"
    (closed / "gemma_export.json").write_bytes(b"{}")
    closed.chmod(mode)
    with pytest.raises(OutputError, match="Permission denied") as raised:
        check_output(closed, True)
    assert str(closed) in raised.value.message


def test_force_never_deletes_what_no_export_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_tiny(folder)
    (folder / ".DS_Store").write_bytes(b"")
    check_output(folder, True)
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint/model.safetensors").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"holds 'checkpoint/model\.safetensors', which no export wrote") as raised:
        check_output(folder, True)
    assert raised.value.exit_code == 7
    (folder / "checkpoint/model.safetensors").unlink()
    (folder / "gemma_export.json").write_text("")
    with pytest.raises(OutputError, match=r"is not an exported folder: .* is not JSON"):
        check_output(folder, True)
