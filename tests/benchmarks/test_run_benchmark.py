"""The harness on real processes: order, figures, what fails, what is written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from fake_programs import benchmark, program, settings

from benchmarks.harness import SCHEMA_FILE, Metric, Need, rounds, run_benchmark
from benchmarks.harness.chart import draw
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.results import ProgramResult, Results, Run
from gemma_export.errors import MissingResourceError, ResourceExhaustedError, UsageError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the harness needs wait4 and process groups")

WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1], 'out').write_bytes(bytes(5000))"


def read(root: Path) -> dict[str, Any]:
    """The results, held against the schema."""
    content: dict[str, Any] = json.loads((root / "results/fake.json").read_text(encoding="utf-8"))
    jsonschema.validate(content, json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    return content


def test_programs_run_in_turn_round_after_round(tmp_path: Path) -> None:
    order = tmp_path / "order"
    note = f"import sys; open({str(order)!r}, 'a').write(sys.argv[2] + ' ');" + WRITE
    programs = [program(name, note) for name in ("ours", "b", "c")]
    code = run_benchmark(benchmark(*programs), settings(tmp_path, rounds=2, warm_up=True))
    assert code == 0
    assert order.read_text(encoding="utf-8").split() == ["ours", "b", "c"] * 3
    runs = read(tmp_path)["runs"]
    assert [(run["round"], run["program"]) for run in runs] == [
        (number, name) for number in range(3) for name in ("ours", "b", "c")
    ]


def test_ratios_are_taken_pair_by_pair_and_the_warm_up_counts_nowhere(tmp_path: Path) -> None:
    """[1, 9, 2] beside [2, 3, 8]: the median of the pairs is 0.5, that of the medians would be 0.67."""
    ours = {0: 100, 1: 1, 2: 9, 3: 2}
    theirs = {0: 1, 1: 2, 2: 3, 3: 8}
    programs = [
        program(name, scripted(tmp_path / name, values), figure=True)
        for name, values in (("ours", ours), ("theirs", theirs))
    ]
    run_benchmark(benchmark(*programs), settings(tmp_path, warm_up=True))
    content = read(tmp_path)
    assert content["summary"]["ours"]["figure"] == {"median": 2, "minimum": 1, "maximum": 9, "rounds": [1, 9, 2]}
    assert content["summary"]["theirs"]["figure"]["median"] == 3
    ratio = content["ratios"]["theirs"]["figure"]
    assert (ratio["median"], ratio["rounds"]) == (0.5, [0.5, 3, 0.25])
    assert "ours" not in content["ratios"]
    assert any("ours: figure differs by 400%" in warning for warning in content["warnings"])


def scripted(counter: Path, values: dict[int, int]) -> str:
    """Prints the next value at each call."""
    return (
        f"import pathlib, sys; f = pathlib.Path({str(counter)!r}); n = len(f.read_bytes()) if f.exists() else 0;"
        f"f.write_bytes(bytes(n + 1)); print({values}[n]);" + WRITE
    )


def test_output_is_measured_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_benchmark(benchmark(program("ours", WRITE)), settings(tmp_path))
    content = read(tmp_path)
    assert content["summary"]["ours"]["output_bytes"]["rounds"] == [5000, 5000, 5000]
    assert list((tmp_path / "work").iterdir()) == []
    assert content["finished"] is not None
    assert content["programs"][0]["versions"]["numpy"]
    assert content["programs"][0]["commands"][0][-2:] == ["{output}", "ours"]
    assert (tmp_path / "results/fake.png").read_bytes().startswith(b"\x89PNG")
    assert "| ours |" in capsys.readouterr().out


def test_input_that_was_there_is_used_and_stays(tmp_path: Path) -> None:
    (tmp_path / "work/input").mkdir(parents=True)
    (tmp_path / "work/input/file").write_bytes(b"mine")
    run_benchmark(benchmark(program("ours", WRITE)), settings(tmp_path, rounds=1))
    assert (tmp_path / "work/input/file").read_bytes() == b"mine"


def test_kept_input_stays(tmp_path: Path) -> None:
    run_benchmark(benchmark(program("ours", WRITE)), settings(tmp_path, rounds=1, keep=True))
    assert (tmp_path / "work/input/file").exists()


def test_a_peer_that_fails_is_recorded_and_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = program("broken", "raise SystemExit('no such layer: 7')")
    code = run_benchmark(benchmark(program("ours", WRITE), broken), settings(tmp_path, rounds=2))
    assert code == 0
    content = read(tmp_path)
    assert [run["program"] for run in content["runs"]] == ["ours", "broken", "ours"]
    failed = content["runs"][1]
    assert (failed["status"], failed["reason"], failed["values"]) == ("failed", "exit code 1: no such layer: 7", {})
    assert failed["log_tail"] == "no such layer: 7"
    assert content["ratios"]["broken"] == {}
    assert "broken: failed in round 1: exit code 1: no such layer: 7" in capsys.readouterr().out


def test_out_of_memory_is_told(tmp_path: Path) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29)); bytearray(1 << 30)"
    run_benchmark(benchmark(program("ours", WRITE), program("hungry", code)), settings(tmp_path, rounds=1))
    assert read(tmp_path)["runs"][1]["reason"] == "out of memory (exit code 1): MemoryError"


def test_a_program_that_a_signal_ends_is_told(tmp_path: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    run_benchmark(benchmark(program("ours", WRITE), program("peer", code)), settings(tmp_path, rounds=1))
    assert read(tmp_path)["runs"][1]["reason"].startswith("killed by SIGSEGV")


@pytest.mark.parametrize(
    ("code", "reason"),
    [("print(1)", "it ended well and wrote nothing"), (WRITE + "; print('fast')", "its figures cannot be read")],
)
def test_success_without_a_result_is_a_failure(tmp_path: Path, code: str, reason: str) -> None:
    peer = program("peer", code, figure=True)
    run_benchmark(benchmark(program("ours", WRITE), peer), settings(tmp_path, rounds=1))
    failed = read(tmp_path)["runs"][1]
    assert failed["status"] == "failed"
    assert failed["reason"].startswith(reason)


def test_failure_of_the_subject_is_the_exit_code(tmp_path: Path) -> None:
    code = run_benchmark(benchmark(program("ours", "1 / 0"), program("peer", WRITE)), settings(tmp_path, rounds=1))
    assert code == 1
    assert read(tmp_path)["runs"][1]["status"] == "ok"


def test_later_steps_do_not_run_after_a_failure(tmp_path: Path) -> None:
    peer = program("peer", "raise SystemExit(4)", WRITE)
    run_benchmark(benchmark(program("ours", WRITE, WRITE), peer), settings(tmp_path, rounds=1))
    ours, failed = read(tmp_path)["runs"]
    assert [step["name"] for step in ours["steps"]] == ["step 0", "step 1"]
    assert ours["values"]["seconds"] == pytest.approx(sum(step["seconds"] for step in ours["steps"]))
    assert [step["exit_code"] for step in failed["steps"]] == [4]


def test_missing_peers_are_named_with_what_installs_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = program("absent", WRITE, python=tmp_path / "bin/python", install="make peer-absent installs it")
    package = program("package", WRITE, packages=("numpy", "surely-not-installed"), install="pip brings it")
    flag = Need(missing="it has no --int4", command=(sys.executable, "--help"), contains="--int4")
    old = program("old", WRITE, needs=(flag,))
    code = run_benchmark(benchmark(program("ours", WRITE), absent, package, old), settings(tmp_path, rounds=1))
    assert code == 0
    missing = {found["name"]: found["missing"] for found in read(tmp_path)["programs"]}
    assert missing["ours"] == ""
    assert missing["absent"].endswith("bin/python does not run; make peer-absent installs it")
    assert missing["package"] == "not installed: surely-not-installed; pip brings it"
    assert missing["old"] == "it has no --int4"
    assert "left out: old: it has no --int4" in capsys.readouterr().err


def test_nothing_to_run_is_an_error(tmp_path: Path) -> None:
    absent = program("ours", WRITE, python=tmp_path / "python")
    with pytest.raises(MissingResourceError, match="no program can run here: ours"):
        run_benchmark(benchmark(absent), settings(tmp_path))


def test_too_little_disk_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhaustedError, match=r"not enough disk space: \d+\.\d GB needed"):
        run_benchmark(benchmark(program("ours", WRITE), nbytes=1 << 60), settings(tmp_path))
    assert list((tmp_path / "work").iterdir()) == []


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    programs = benchmark(program("ours", WRITE), program("peer", WRITE))
    with pytest.raises(UsageError, match="no program 'other'"):
        run_benchmark(programs, settings(tmp_path, skip=("other",)))
    with pytest.raises(UsageError, match="leave no program"):
        run_benchmark(programs, settings(tmp_path, only=("peer",), skip=("peer",)))
    assert run_benchmark(programs, settings(tmp_path, only=("peer",), rounds=1)) == 0
    assert [run["program"] for run in read(tmp_path)["runs"]] == ["peer"]


def test_a_program_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import os, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True);"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}'); time.sleep(60)"
    )
    run_benchmark(benchmark(program("ours", WRITE), program("slow", code)), settings(tmp_path, rounds=1, time_limit=4))
    slow = read(tmp_path)["runs"][1]
    assert (slow["status"], slow["reason"]) == ("timeout", "not finished after 4 s")
    assert slow["steps"][0]["processes"] == 2
    assert not any(psutil.pid_exists(int(pid)) for pid in pids.read_text(encoding="utf-8").split())


def test_environment_of_ours_does_not_reach_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = "import os; print(len(os.environ.get('PYTHONPATH', '')) + int(os.environ['ASKED']));" + WRITE
    run_benchmark(
        benchmark(program("ours", code, figure=True, environment={"ASKED": "40"})), settings(tmp_path, rounds=1)
    )
    assert read(tmp_path)["summary"]["ours"]["figure"]["median"] == 40


def test_only_what_a_program_reads_is_brought_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[str] = []
    monkeypatch.setattr(rounds, "warm_page_cache", lambda directory, _: warmed.append(directory.name))
    programs = (program("ours", WRITE, reads=("a", "b")), program("peer", WRITE))
    assert run_benchmark(benchmark(*programs), settings(tmp_path, rounds=1)) == 0
    assert warmed == ["a", "b", "input"]


@pytest.mark.parametrize(("panels", "size"), [(4, (2670, 375)), (5, (2070, 540))])
def test_many_panels_go_into_several_rows(tmp_path: Path, panels: int, size: tuple[int, int]) -> None:
    metric = Metric(label="figure", unit="s", better="lower", description="of a fake")
    values = {f"figure_{index}": float(index + 1) for index in range(panels)}
    run = Run(round=1, program="ours", status="ok", reason="", values=values, steps=(), other_cpu_share=0, log_tail="")
    results = Results(
        benchmark="fake",
        title="Fakes",
        subject="ours",
        settings={"rounds": 1},
        machine=describe_machine(tmp_path),
        metrics=dict.fromkeys(values, metric),
        programs=[ProgramResult(name="ours", note="", versions={}, commands=(), missing="")],
        started="now",
        runs=[run],
    )
    assert draw(results, tmp_path / "chart.png")
    header = (tmp_path / "chart.png").read_bytes()[16:24]
    assert (int.from_bytes(header[:4]), int.from_bytes(header[4:])) == size
