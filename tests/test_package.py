"""The distribution as users install it: a built wheel, in a place of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    # a copy: setuptools builds inside the source tree
    source = root / "source"
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*command, "--wheel-dir", str(root), str(source)], check=True, capture_output=True)
    (built,) = root.glob("gemma_export-*.whl")
    return built


def test_wheel_holds_three_packages_and_the_built_in_models(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        sizes = {
            name: sum(entry.file_size for entry in archive.infolist() if f"/checkpoint/{name}/" in entry.filename)
            for name in ("tiny", "tiny2")
        }
    # with their tokenizers, which are the same
    assert all(7_000_000 < size < 8_000_000 for size in sizes.values()), sizes
    assert {"gemma_runtime/manifest.schema.json", "gemma_export/py.typed", "gemma_validation/drift.py"} <= names
    assert {"gemma_export/schemas/plan.schema.json", "gemma_runtime/schemas/doctor.schema.json"} <= names
    assert {"gemma_validation/schemas/report.schema.json", "gemma_validation/report/page.css"} <= names
    assert {"gemma_validation/budgets/int4.toml", "gemma_validation/budgets/tiny-fp32.toml"} <= names
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"gemma_export", "gemma_runtime", "gemma_validation"}


def test_installed_wheel_exports_the_built_in_model(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(target)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    code = (
        "import gemma_export, sys; assert gemma_export.__file__.startswith(sys.argv[1]), gemma_export.__file__\n"
        "from gemma_export.pipeline import ExportRequest, export\nfrom pathlib import Path\n"
        "result = export(ExportRequest(variant='tiny', output=Path('out')))\n"
        "assert len(result.folder.files) > 8"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    result = subprocess.run(
        [sys.executable, "-c", code, str(target)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    scripts = {path.stem for path in (target / "bin").iterdir()}
    assert {"gemma-export", "gemma-run"} <= scripts


def test_exactly_one_extra_brings_onnxruntime() -> None:
    """The three wheels own one import name: none may come by itself."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    owners = {name for name, packages in extras.items() if any(p.startswith("onnxruntime") for p in packages)}
    assert owners == {"cpu", "cuda", "directml"}
    assert not any(package.startswith("onnxruntime") for package in project["dependencies"])
    base = {package.split(">")[0] for package in project["dependencies"]}
    assert base == {"numpy", "click", "rich", "tokenizers", "sentencepiece"}
