"""Cache folders: where they are and how much they hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_export.artifact.lock import cache_directory
from gemma_runtime.doctor.caches import export_cache, hub_cache, look_at_caches

VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "GEMMA_EXPORT_CACHE")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"XDG_CACHE_HOME": "/somewhere"},
        {"HF_HOME": "~/models"},
        {"HF_HOME": "/a", "HF_HUB_CACHE": "$HF_HOME/b"},
        {"HUGGINGFACE_HUB_CACHE": "/old"},
        {"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/new", "HF_HOME": "/home"},
    ],
)
def test_the_hubs_own_rules(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert str(hub_cache()) == theirs.stdout.strip()


@pytest.mark.parametrize("environment", [{}, {"XDG_CACHE_HOME": "/somewhere"}, {"GEMMA_EXPORT_CACHE": "/mine"}])
@pytest.mark.parametrize("platformdirs", [True, False])
def test_the_exporters_own_rules(
    environment: dict[str, str], platformdirs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    expected = cache_directory()
    if not platformdirs:
        # as where only the runtime is installed
        monkeypatch.setitem(sys.modules, "platformdirs", None)
    assert export_cache() == expected


def test_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links are not counted again, whichever kind they are."""
    (tmp_path / "hub/blobs").mkdir(parents=True)
    (tmp_path / "hub/blobs/a").write_bytes(b"x" * 1000)
    (tmp_path / "hub/blobs/b").write_bytes(b"x" * 10)
    (tmp_path / "hub/link").symlink_to("blobs/a")
    (tmp_path / "hub/loop").symlink_to(tmp_path / "hub")
    os.link(tmp_path / "hub/blobs/b", tmp_path / "hub/hard")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("GEMMA_EXPORT_CACHE", str(tmp_path / "none"))
    hub, own = look_at_caches()
    assert (hub.exists, hub.size, hub.files, hub.error) == (True, 1010, 2, None)
    assert (own.exists, own.size, own.error) == (False, 0, None)


@pytest.mark.skipif(os.name == "nt", reason="POSIX rights")
def test_a_folder_without_rights(tmp_path: Path) -> None:
    """What may be read is counted. A process of its own, since the superuser may read everything."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open/file").write_bytes(b"123")
    (tmp_path / "shut").mkdir()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    (tmp_path / "shut").chmod(0o000)
    code = (
        "import os, sys\nfrom gemma_runtime.doctor import caches\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "print(caches.look_at_caches()[0])"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path)}
    try:
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        )
    finally:
        (tmp_path / "shut").chmod(0o755)
    assert "size=3, files=1" in result.stdout
    assert f"{tmp_path / 'shut'}: Permission denied" in result.stdout
