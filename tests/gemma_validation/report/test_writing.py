"""Report files are there whole, or as they were before."""

from __future__ import annotations

import json
import os
import stat
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from example_reports import drifted, passed
from unprivileged import DROP_RIGHTS, run_code

from gemma_validation.errors import ReportDirectoryError
from gemma_validation.files import replace_file
from gemma_validation.report import prepare_directory, write_reports


def test_three_files_in_a_new_directory(tmp_path: Path) -> None:
    directory = tmp_path / "größe 你" / "reports"
    paths = write_reports(passed(), directory)
    assert [path.name for path in paths] == ["report.json", "junit.xml", "report.html"]
    assert sorted(directory.iterdir()) == sorted(paths)
    assert json.loads(paths[0].read_text(encoding="utf-8"))["verdict"] == "passed"
    assert ET.parse(paths[1]).getroot().tag == "testsuites"
    assert paths[2].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    before = [path.read_bytes() for path in paths]
    write_reports(passed(), directory)
    assert [path.read_bytes() for path in paths] == before
    write_reports(drifted(), directory)
    assert json.loads(paths[0].read_text(encoding="utf-8"))["verdict"] == "drift"


@pytest.mark.parametrize("call", [prepare_directory, lambda place: write_reports(passed(), place)])
def test_a_file_where_the_directory_should_be(tmp_path: Path, call: object) -> None:
    place = tmp_path / "reports"
    place.write_text("mine")
    for directory in (place, place / "below"):
        with pytest.raises(ReportDirectoryError, match="cannot be written") as caught:
            call(directory)  # type: ignore[operator]
        assert (caught.value.exit_code, str(directory) in caught.value.message) == (7, True)
        assert "--report-dir" in caught.value.hint
    assert place.read_text() == "mine"


def test_preparing_leaves_an_empty_directory(tmp_path: Path) -> None:
    prepare_directory(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def limited(limit: str, directory: Path) -> str:
    """What a program says that may write little, or nothing."""
    code = (
        "from example_reports import drifted\nfrom gemma_validation.errors import ReportDirectoryError\n"
        f"from gemma_validation.report import write_reports\n{limit}"
        "try:\n    write_reports(drifted(), Path(sys.argv[1]))\n"
        "except ReportDirectoryError as error:\n    print(error.message)\n"
    )
    return run_code(code, directory)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on a file's size")
def test_a_full_disk_leaves_the_reports_of_before(tmp_path: Path) -> None:
    paths = write_reports(passed(), tmp_path)
    before = [path.read_bytes() for path in paths]
    said = limited(
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n",
        tmp_path,
    )
    assert str(tmp_path) in said
    assert "too large" in said
    assert [path.read_bytes() for path in paths] == before
    assert sorted(tmp_path.iterdir()) == sorted(paths)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps rights otherwise")
def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    place = tmp_path / "reports"
    place.mkdir()
    place.chmod(0o555)
    assert "Permission denied" in limited(DROP_RIGHTS, place)
    assert list(place.iterdir()) == []


def test_a_file_keeps_its_rights_and_old_partial_files_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "a"
    (tmp_path / ".a.partial").write_text("of an interrupted run")
    replace_file(file, b"1")
    file.chmod(0o640)
    replace_file(file, b"2")
    assert file.read_bytes() == b"2"
    assert stat.S_IMODE(file.stat().st_mode) == (0o640 if os.name != "nt" else 0o666)
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_laid_where_the_partial_file_goes_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / ".a.partial").symlink_to(victim)
    replace_file(tmp_path / "a", b"new")
    assert victim.read_text() == "kept"


@pytest.mark.skipif(os.name == "nt", reason="Windows replaces no file that is open")
def test_whoever_reads_the_old_file_reads_all_of_it(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"old")
    with file.open("rb") as reader:
        replace_file(file, b"new and longer")
        assert reader.read() == b"old"
    assert file.read_bytes() == b"new and longer"
