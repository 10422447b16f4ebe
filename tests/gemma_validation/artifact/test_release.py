"""The version of onnxruntime, by whichever of its names it is installed."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

import pytest

from gemma_runtime import read_manifest
from gemma_validation.artifact import onnxruntime_version
from gemma_validation.reference import FolderReference
from gemma_validation.run import validate


def installed(monkeypatch: pytest.MonkeyPatch, root: Path, **versions: str) -> None:
    """Only these distributions are there."""
    for name, version in versions.items():
        directory = root / f"site/{name}-{version}.dist-info"
        directory.mkdir(parents=True)
        (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (directory / "top_level.txt").write_text("onnxruntime\n")
    found = importlib.metadata.distributions(path=[str(root / "site")])
    monkeypatch.setattr(importlib.metadata, "distributions", lambda found=tuple(found): iter(found))


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"onnxruntime": "1.32.0"}, "1.32.0"),
        ({"onnxruntime_gpu": "1.31.1"}, "1.31.1"),
        ({"onnxruntime_directml": "1.24.4"}, "1.24.4"),
        ({}, "unknown"),
    ],
)
def test_each_distribution(
    versions: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, tmp_path, **versions)
    assert onnxruntime_version() == expected


def test_reports_where_only_the_gpu_package_is_installed(
    tiny_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All measuring was lost there for a version of a package of another name."""
    installed(monkeypatch, tmp_path, onnxruntime_gpu="1.31.1")
    reference = FolderReference(tiny_fp32, read_manifest(tiny_fp32))
    assert reference.about.versions["onnxruntime"] == "1.31.1"
    reference.close()
    # broken is told by the same report, without minutes of measuring
    folder = Path(shutil.copytree(tiny_fp32, tmp_path / "folder"))
    with (folder / "onnx/model.onnx_data").open("r+b") as data:
        data.write(b"\xff")
    assert validate(folder).subject.onnxruntime == "1.31.1"
