"""Settings of all tests: offline, quiet, a cache directory of their own."""

from __future__ import annotations

import os

# before anything imports onnxruntime or transformers
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# one process a core (`make test`): two threads in each would wait for one another
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
import warnings
from pathlib import Path

import pytest

# a shell's background job ignores Ctrl-C, and so would every program that a test starts and interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _cache_directory(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["GEMMA_EXPORT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    # no test finds what a developer has downloaded, or who is logged in
    os.environ["HF_HOME"] = str(tmp_path_factory.mktemp("hub"))
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_ENDPOINT"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def tiny_fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, exported once."""
    return _export_tiny(tmp_path_factory.mktemp("tiny"), "fp32")


@pytest.fixture(scope="session")
def tiny_fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model in float16, exported once."""
    return _export_tiny(tmp_path_factory.mktemp("tiny"), "fp16")


def _export_tiny(root: Path, precision: str) -> Path:
    from gemma_export.pipeline import ExportRequest, export

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(ExportRequest(variant="tiny", precision=precision, output=root / precision)).folder.directory
