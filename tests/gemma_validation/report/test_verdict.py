"""The verdict in the manifest: written in one step, read by everybody, never a reason to fail."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from example_reports import REPORTS, broken, golden, passed
from folders import rewrite_manifest
from programs import gemma_export
from unprivileged import DROP_RIGHTS, run_code

import gemma_runtime
from gemma_export.artifact import verify_folder
from gemma_export.artifact.lock import lock_output
from gemma_runtime import Gemma
from gemma_runtime.manifest import MANIFEST_FILE, read_manifest
from gemma_validation.findings import Drift
from gemma_validation.report import record_verdict, verdict_entry

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads(Path(str(gemma_runtime.__file__)).with_name("manifest.schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def folder(tiny_fp32: Path, tmp_path: Path) -> Path:
    # links: the weights are only read, the manifest is replaced
    shutil.copytree(tiny_fp32, tmp_path / "folder")
    manifest = tmp_path / "folder" / MANIFEST_FILE
    text = manifest.read_bytes()
    manifest.unlink()
    manifest.write_bytes(text)
    return tmp_path / "folder"


@pytest.mark.parametrize("name", REPORTS)
def test_recorded_and_read_back(folder: Path, name: str) -> None:
    before = read_manifest(folder)
    assert record_verdict(folder, REPORTS[name]) is None
    after = read_manifest(folder)
    assert after.validation == verdict_entry(REPORTS[name])
    assert after.validation["verdict"] == REPORTS[name].verdict
    assert dataclasses.replace(after, validation=before.validation) == before
    text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(text))
    assert len(text) < 200_000
    assert verify_folder(folder).extra_files == ()


def test_the_folder_stays_good_for_every_reader(folder: Path) -> None:
    assert record_verdict(folder, passed()) is None
    result = gemma_export("verify", folder)
    assert result.returncode == 0, result.stderr
    assert Gemma(folder, threads=1).generate("def f(", max_new_tokens=2).text


def test_what_is_recorded_is_what_the_schema_describes() -> None:
    entry = verdict_entry(passed())
    assert list(entry) == list(SCHEMA["$defs"]["validation"]["properties"])
    assert entry["metrics"] == {
        "kl_mean": pytest.approx(1.1e-3),
        "kl_mean_upper": pytest.approx(1.265e-3),
        "kl_p99": pytest.approx(9.9e-3),
        "top1_agreement": pytest.approx(0.991),
        "perplexity_ratio": pytest.approx(1.00055),
        "decisive_flips": 14,
        "positions": 20_480,
        "lower_bound": False,
    }
    assert entry["reference"] == {"kind": "transformers", "name": "tiny", "dtype": "float32"}
    assert entry["versions"]["onnxruntime"] == "1.32.0"
    assert {"gemma-export", "torch", "transformers"} <= set(entry["versions"])


def test_a_published_folder_tells_no_path_of_its_maker() -> None:
    assert verdict_entry(golden())["reference"]["name"] == "tiny.golden"
    assert "someone" not in json.dumps(verdict_entry(passed()))


def test_nothing_compared_and_nothing_finite() -> None:
    assert verdict_entry(broken())["metrics"] is None
    drift: Drift = passed().drift[0]
    infinite = dataclasses.replace(drift, perplexity_ratio=math.inf)
    assert verdict_entry(passed(drift=(infinite,)))["metrics"]["perplexity_ratio"] is None


def test_the_last_verdict_stays(folder: Path) -> None:
    record_verdict(folder, passed())
    record_verdict(folder, broken())
    assert read_manifest(folder).validation == verdict_entry(broken())


def _unchanged(folder: Path, reason: str, **options: Any) -> None:
    before = (folder / MANIFEST_FILE).read_bytes()
    files = sorted(path.name for path in folder.iterdir())
    said = record_verdict(folder, passed(), **options)
    assert said is not None
    assert said.startswith("the verdict is not recorded: ")
    assert reason in said
    assert (folder / MANIFEST_FILE).read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == files


def test_an_export_that_holds_the_folder(folder: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom gemma_export.artifact.lock import lock_output\n"
        "with lock_output(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    path = os.pathsep.join(str(ROOT / part) for part in ("", "runtimes/python"))
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    _unchanged(folder, "another export holds")
    holder.communicate("")
    assert record_verdict(folder, passed()) is None
    with lock_output(folder.resolve()):
        pass


def test_a_folder_that_was_exported_anew(folder: Path) -> None:
    validated = read_manifest(folder)
    assert record_verdict(folder, passed(), validated=validated) is None
    # an older verdict is no other folder
    assert record_verdict(folder, passed(), validated=validated) is None
    rewrite_manifest(folder, context_length=validated.context_length + 1)
    _unchanged(folder, "exported anew", validated=validated)


def test_a_manifest_that_is_a_link(folder: Path) -> None:
    (folder / MANIFEST_FILE).rename(folder.with_name("blob"))
    (folder / MANIFEST_FILE).symlink_to(folder.with_name("blob"))
    _unchanged(folder, "is a link")


def test_no_manifest(tmp_path: Path) -> None:
    assert "has no gemma_export.json" in str(record_verdict(tmp_path, passed()))


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps rights otherwise")
def test_a_folder_that_may_not_be_written(folder: Path, tmp_path: Path) -> None:
    code = (
        "from example_reports import passed\nfrom gemma_validation.report import record_verdict\n"
        f"import filelock, platformdirs\n{DROP_RIGHTS}print(record_verdict(Path(sys.argv[1]), passed()))\n"
    )
    before = (folder / MANIFEST_FILE).read_bytes()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    folder.chmod(0o555)
    (folder / MANIFEST_FILE).chmod(0o644)
    said = run_code(code, folder, GEMMA_EXPORT_CACHE=str(tmp_path / "cache"))
    folder.chmod(0o755)
    assert said == f"the verdict is not recorded: writing to {folder}: Permission denied\n"
    assert (folder / MANIFEST_FILE).read_bytes() == before


def test_a_missing_package_is_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "filelock", None)
    _unchanged(folder, "filelock is not installed")
