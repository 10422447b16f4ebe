"""The example workflow's commands, run one by one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from folders import altered
from workflows import run_job

from gemma_runtime.manifest import read_manifest
from gemma_validation.findings import EXIT_CODES

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the workflow's runner has a POSIX shell")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A whole job's directory, and its exit codes."""
    place = tmp_path_factory.mktemp("job")
    return place, run_job(place)


def test_the_tiny_model_passes(job: tuple[Path, dict[str, int]]) -> None:
    place, codes = job
    assert list(codes.values()) == [0, 0, 0, 0]
    for name in ("fp32", "int4"):
        reports = place / "reports" / name
        assert sorted(path.name for path in reports.iterdir()) == ["junit.xml", "report.html", "report.json"]
        assert json.loads((reports / "report.json").read_text(encoding="utf-8"))["verdict"] == "passed"
        validation = read_manifest(place / "exports" / name).validation
        assert validation is not None
        assert validation["verdict"] == "passed"
    summary = (place / "summary.md").read_text(encoding="utf-8")
    assert summary.count("gemma-validate: passed") == 2


def test_drift_fails_the_job_and_the_other_export_is_still_validated(
    job: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    shutil.copytree(job[0] / "exports/int4", tmp_path / "exports/int4")
    _with_a_larger_gain(job[0] / "exports/fp32", tmp_path / "exports/fp32")
    codes = run_job(tmp_path, first="Validate float32")
    assert set(codes) == {"Validate float32", "Validate int4"}
    assert codes["Validate float32"] in (EXIT_CODES["drift"], EXIT_CODES["broken"])
    assert codes["Validate int4"] == 0
    verdict = json.loads((tmp_path / "reports/fp32/report.json").read_text(encoding="utf-8"))["verdict"]
    assert EXIT_CODES[verdict] == codes["Validate float32"]


def _with_a_larger_gain(folder: Path, target: Path) -> None:
    """The last norm multiplies by 1.5 times its gain, with hashes that say so."""
    graph = read_manifest(folder).graph()
    model = onnx.load(folder / graph.file, load_external_data=False)
    (gain,) = [tensor for tensor in model.graph.initializer if tensor.name == "model.norm.gain"]
    where = {entry.key: entry.value for entry in gain.external_data}
    (name,) = graph.data_files
    data = bytearray((folder / name).read_bytes())
    start, length = int(where["offset"]), int(where["length"])
    data[start : start + length] = (np.frombuffer(data[start : start + length], np.float32) * 1.5).tobytes()
    altered(folder, target, {name: bytes(data)})
