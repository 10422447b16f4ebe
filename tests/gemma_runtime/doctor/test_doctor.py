"""gemma-run --doctor as a user types it, in installations that are really broken."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from folders import rewrite_manifest
from json_schemas import validated
from programs import gemma_run

VERSION = importlib.metadata.version("onnxruntime")


def doctor(*arguments: object, first: Path | None = None, **environment: str) -> tuple[int, dict[str, Any]]:
    """(exit code, validated report), with a folder that is searched before all others."""
    if first is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(first), os.environ.get("PYTHONPATH", "")])
    result = gemma_run("--doctor", "--json", *arguments, **environment)
    return result.returncode, validated(result.stdout, "gemma_runtime/doctor")


def write_distribution(root: Path, name: str, version: str, *, record: bool) -> None:
    """Metadata of a distribution that claims the import package onnxruntime, by file list or by top-level name."""
    folder = root / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if record:
        (folder / "RECORD").write_text("onnxruntime/__init__.py,,\n")
    else:
        (folder / "top_level.txt").write_text("onnxruntime\n")


def write_module(root: Path, code: str) -> Path:
    (root / "onnxruntime").mkdir(parents=True)
    (root / "onnxruntime/__init__.py").write_text(code)
    return root


def test_a_sound_installation_for_people() -> None:
    result = gemma_run("--doctor")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert any(line.startswith("python ") and sys.executable in line for line in lines)
    assert any(line.startswith("onnxruntime ") and f"installed by onnxruntime {VERSION}" in line for line in lines)
    assert any(line.startswith("provider ") and line.endswith("CPU: starts") for line in lines)
    assert lines[-1] == "next: gemma-export --variant tiny"
    assert "problem:" not in result.stdout


def test_a_sound_installation_for_machines() -> None:
    code, report = doctor()
    assert (code, report["ok"], report["problems"]) == (0, True, [])
    assert report["versions"]["numpy"] == importlib.metadata.version("numpy")
    assert report["versions"]["torch"] == importlib.metadata.version("torch")
    assert [owner["name"] for owner in report["owners"]] == ["onnxruntime"]
    providers = {provider["name"]: provider for provider in report["providers"]}
    cpu = providers["CPUExecutionProvider"]
    assert (cpu["starts"], cpu["node_provider"], cpu["session_providers"]) == (
        True,
        "CPUExecutionProvider",
        ["CPUExecutionProvider"],
    )
    # built into the wheel, so get_available_providers() lists it, but it computes nothing here
    if "AzureExecutionProvider" in providers:
        assert not providers["AzureExecutionProvider"]["starts"]
        assert "takes no node" in providers["AzureExecutionProvider"]["reason"]


@pytest.mark.parametrize(
    ("second", "record", "extra"),
    [
        ("onnxruntime-gpu", False, '"gemma-export[cuda]"'),
        ("onnxruntime-directml", True, '"gemma-export[directml]"'),
        # known to no list of ours
        ("onnxruntime-of-tomorrow", False, '"gemma-export[cpu]"'),
    ],
)
def test_two_owners(second: str, record: bool, extra: str, tmp_path: Path) -> None:
    if record:
        # from Python 3.12 on only files that exist count
        write_module(tmp_path, "")
    write_distribution(tmp_path, second, "1.30.0", record=record)
    code, report = doctor(first=tmp_path)
    problem = report["problems"][0]
    assert (code, problem["kind"]) == (8, "conflict")
    assert f"onnxruntime {VERSION} and {second} 1.30.0" in problem["message"]
    assert problem["commands"] == [
        f"{sys.executable} -m pip uninstall -y onnxruntime {second}",
        f"{sys.executable} -m pip install {extra}",
    ]
    text = gemma_run("--doctor", PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert text.returncode == 8
    assert text.stdout.splitlines()[-1] == "next: " + "; ".join(problem["commands"])


def test_what_pip_left_of_a_failed_uninstall_is_no_owner(tmp_path: Path) -> None:
    write_distribution(tmp_path, "onnxruntime-gpu", "1.30.0", record=False)
    (tmp_path / "onnxruntime_gpu-1.30.0.dist-info").rename(tmp_path / "~nnxruntime_gpu-1.30.0.dist-info")
    (tmp_path / "nameless-1.0.dist-info").mkdir()
    (tmp_path / "nameless-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\n")
    code, report = doctor(first=tmp_path)
    assert (code, report["problems"]) == (0, [])


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        ("raise ImportError('libonnx.so.1: cannot open\\nshared object file')", "libonnx.so.1: cannot open shared"),
        ("raise KeyError('x')", "KeyError"),
        ("", "no __version__"),
        ("__version__ = '1.30.0'", "no InferenceSession"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os; os._exit(3)", "exit code 3"),
        ("syntax error", "SyntaxError"),
    ],
)
def test_broken_import(content: str, phrase: str, tmp_path: Path) -> None:
    code, report = doctor(first=write_module(tmp_path, content))
    (problem,) = report["problems"]
    assert (code, problem["kind"], report["onnxruntime"]["available"]) == (8, "broken", [])
    assert phrase in problem["message"]
    assert problem["commands"][0] == f"{sys.executable} -m pip uninstall -y onnxruntime"


def test_a_leftover_folder_is_named(tmp_path: Path) -> None:
    _, report = doctor(first=write_module(tmp_path, ""))
    assert f"Remove {tmp_path / 'onnxruntime'}" in report["problems"][0]["hint"]


def test_no_provider_starts(tmp_path: Path) -> None:
    module = (
        f"__version__ = '{VERSION}'\n"
        "class SessionOptions:\n    add_session_config_entry = lambda *_: None\n"
        "class InferenceSession:\n    def __init__(self, *_, **__): raise RuntimeError('no driver')\n"
        "def get_available_providers(): return ['CUDAExecutionProvider']\n"
    )
    code, report = doctor(first=write_module(tmp_path, module))
    assert (code, report["ok"]) == (8, False)
    assert report["problems"][0]["kind"] == "provider"
    assert "CUDAExecutionProvider: RuntimeError: no driver" in report["problems"][0]["message"]
    # and it is not the package's own module
    assert report["problems"][1]["kind"] == "mismatch"
    assert report["problems"][1]["exit_code"] == 0


def test_nothing_installed(tmp_path: Path) -> None:
    """Without site-packages: no numpy, no onnxruntime, no tokenizers; the diagnosis needs click only."""
    site = Path(sysconfig.get_paths()["purelib"])
    shutil.copytree(site / "click", tmp_path / "click")
    root = Path(__file__).parents[3] / "runtimes/python"
    result = subprocess.run(
        [sys.executable, "-S", "-m", "gemma_runtime", "--doctor", "--json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])},
        capture_output=True,
        text=True,
        check=False,
    )
    report = validated(result.stdout, "gemma_runtime/doctor")
    assert (result.returncode, report["problems"][0]["kind"]) == (8, "missing")
    assert report["versions"]["numpy"] is None
    assert "gemma-export[cpu]" in report["next"]


def test_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    code, report = doctor()
    assert (code, report["telemetry"]) == (0, {"off": True, "environment": None})
    code, report = doctor(ORT_DISABLE_TELEMETRY="0")
    assert (code, report["telemetry"]["off"]) == (0, False)
    assert [problem["kind"] for problem in report["problems"]] == ["telemetry"]


def test_a_cache_that_cannot_be_read_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, report = doctor(HF_HUB_CACHE=str(tmp_path / "file" / "hub"), GEMMA_EXPORT_CACHE=str(tmp_path / ("x" * 300)))
    assert code == 0
    assert {problem["message"].split()[1] for problem in report["problems"]} == {"hub", "gemma-export"}
    assert all(problem["kind"] == "cache" and problem["exit_code"] == 0 for problem in report["problems"])


def test_nothing_is_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    places = {"HOME": home, "XDG_CACHE_HOME": home / "cache", "TMPDIR": home, "GEMMA_EXPORT_CACHE": home / "mine"}
    result = gemma_run("--doctor", cwd=home, **{name: str(path) for name, path in places.items()})
    assert result.returncode == 0
    assert list(home.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux's affinity")
def test_affinity_is_respected() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        _, report = doctor()
    finally:
        os.sched_setaffinity(0, before)
    assert (report["machine"]["cores"]["affinity"], report["machine"]["cores"]["usable"]) == (1, 1)
    assert report["machine"]["cores"]["logical"] == os.cpu_count()


def test_a_folder_that_runs(tiny_fp32: Path) -> None:
    code, report = doctor(tiny_fp32)
    folder = report["folder"]
    assert (code, report["problems"]) == (0, [])
    assert (folder["precision"], folder["providers_starting"]) == ("fp32", ["cpu"])
    assert folder["graph"] == "onnx/model_last8.onnx"
    sizes = [(tiny_fp32 / "onnx" / name).stat().st_size for name in ("model_last8.onnx", "model.onnx_data")]
    assert folder["weights_bytes"] == sum(sizes)
    assert report["next"] == f'gemma-run {tiny_fp32} "Your prompt"'
    assert folder["state_bytes_full_context"] == 8192 * folder["state_bytes_per_token"]


def test_state_of_the_built_in_model(tiny_fp32: Path) -> None:
    config = json.loads((tiny_fp32 / "config.json").read_text())
    _, report = doctor(tiny_fp32)
    # keys and values, float32
    expected = 2 * 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    assert report["folder"]["state_bytes_per_token"] == expected


def test_folders_that_do_not_run(tiny_fp32: Path, tmp_path: Path) -> None:
    code, report = doctor(tmp_path / "nowhere")
    assert (code, report["problems"][0]["kind"]) == (3, "folder")
    folder = shutil.copytree(tiny_fp32, tmp_path / "folder")
    os.truncate(folder / "onnx/model.onnx_data", 1000)
    code, report = doctor(folder)
    assert (code, report["problems"][0]["kind"]) == (3, "folder")
    assert "onnx/model.onnx_data" in report["problems"][0]["message"]
    folder = shutil.copytree(tiny_fp32, tmp_path / "other")
    rewrite_manifest(folder, providers=("cuda",))
    code, report = doctor(folder)
    assert (code, report["problems"][0]["kind"], report["folder"]["providers_starting"]) == (8, "provider", [])
    rewrite_manifest(folder, providers=("cpu",), min_onnxruntime="99.0")
    graphs = tuple(dataclasses.replace(graph, min_onnxruntime="99.0") for graph in rewrite_manifest(folder).graphs)
    rewrite_manifest(folder, graphs=graphs)
    code, report = doctor(folder)
    assert (code, report["problems"][0]["kind"]) == (8, "release")
