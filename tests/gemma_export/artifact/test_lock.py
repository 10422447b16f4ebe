"""One export per output folder, across threads and processes."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import platformdirs
import pytest
from artifact.tiny_folder import start_child

from gemma_export.artifact.lock import cache_directory, lock_output
from gemma_export.errors import OutputError

HOLDER = """
import sys
from pathlib import Path
from gemma_export.artifact.lock import lock_output
with lock_output(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_EXPORT_CACHE", str(tmp_path / "cache"))


def start_holder(output: Path) -> subprocess.Popen[str]:
    child = start_child(HOLDER, output)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with start_holder(output) as child:
        with pytest.raises(OutputError, match="another export holds") as raised, lock_output(output):
            pass
        assert raised.value.exit_code == 7
        assert str(output) in raised.value.message
        with lock_output(tmp_path / "other"):
            pass
        child.communicate()
    with lock_output(output):
        pass


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with start_holder(tmp_path / "out") as child:
        child.kill()
    with lock_output(tmp_path / "out"):
        pass


def test_we_refuse_a_second_process(tmp_path: Path) -> None:
    with lock_output(tmp_path / "out"), start_child(HOLDER, tmp_path / "out") as child:
        output, errors = child.communicate()
    assert output == ""
    assert child.returncode == 1
    assert "another export holds" in errors


def test_the_same_thread_may_take_it_again_and_still_holds_it(tmp_path: Path) -> None:
    refused: list[OutputError] = []

    def other_thread() -> None:
        try:
            with lock_output(tmp_path / "out"):
                pass
        except OutputError as error:
            refused.append(error)

    def try_from_another_thread() -> int:
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
        return len(refused)

    with lock_output(tmp_path / "out"):
        with lock_output(tmp_path / "out"):
            assert try_from_another_thread() == 1
        assert try_from_another_thread() == 2
    assert try_from_another_thread() == 2


def test_an_exception_in_the_block_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock_output(tmp_path / "out"):
        raise KeyError("mine")
    with start_holder(tmp_path / "out") as child:
        child.communicate()
    assert child.returncode == 0


def test_lock_files_lie_in_the_cache_and_never_near_the_output(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    with lock_output(tmp_path / "place" / "out"):
        [lock] = (tmp_path / "cache").rglob("*.lock")
        assert lock.parent == tmp_path / "cache" / "locks"
        assert list((tmp_path / "place").iterdir()) == []


def test_the_default_place_is_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMMA_EXPORT_CACHE")
    assert cache_directory() == Path(platformdirs.user_cache_dir("gemma-export", appauthor=False))


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot make the lock file") as raised, lock_output(tmp_path / "out"):
        pass
    assert str(tmp_path / "out") in raised.value.message
    assert "GEMMA_EXPORT_CACHE" in raised.value.hint
