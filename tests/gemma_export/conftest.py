"""A Hub of its own for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import HubServer, hub_server
from huggingface_hub import constants
from torchlib import build_torchlib_once

from gemma_export.checkpoint.hub import backoff


@pytest.fixture(scope="session", autouse=True)
def _torchlib() -> None:
    """Most tests here export."""
    build_torchlib_once()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that this process is set up for: empty cache below tmp_path, no token, online, no waiting."""
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf/token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(backoff, "WAITS", (0.0,) * 5)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()
