"""Folders and models that several tests of the runtime share."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from gemma_runtime import Gemma

# a single thread: faster for a model this small, and tests run side by side


@pytest.fixture(scope="session")
def tiny_int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with int4 weights, whose kernels round activations."""
    from gemma_export.pipeline import ExportRequest, export
    from gemma_export.precision import WeightOptions

    options = WeightOptions(scheme="int4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        request = ExportRequest(
            variant="tiny", precision="fp32", weights=options, output=tmp_path_factory.mktemp("int4") / "folder"
        )
        return export(request).folder.directory


@pytest.fixture(scope="session")
def tiny_portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model for kernels that make their caches anew."""
    from gemma_export.pipeline import ExportRequest, export

    request = ExportRequest(variant="tiny", target="portable", output=tmp_path_factory.mktemp("portable") / "folder")
    return export(request).folder.directory


@pytest.fixture(scope="session")
def plain(tiny_fp32: Path) -> Gemma:
    """One token a step."""
    return Gemma(tiny_fp32, speculation="off", threads=1)


@pytest.fixture(scope="session")
def plain_int4(tiny_int4: Path) -> Gemma:
    return Gemma(tiny_int4, speculation="off", threads=1)


@pytest.fixture(scope="session")
def looking_up(tiny_fp32: Path) -> Gemma:
    """Guesses ahead from the text."""
    return Gemma(tiny_fp32, threads=1)


@pytest.fixture(scope="session")
def looking_up_int4(tiny_int4: Path) -> Gemma:
    return Gemma(tiny_int4, threads=1)


@pytest.fixture(scope="session")
def guided(tiny_fp32: Path, tiny_int4: Path) -> Gemma:
    """The quantised model guesses for the exact one."""
    return Gemma(tiny_fp32, draft=tiny_int4, threads=1)


@pytest.fixture(scope="session")
def guided_int4(tiny_fp32: Path, tiny_int4: Path) -> Gemma:
    """The exact model guesses for the quantised one."""
    return Gemma(tiny_int4, draft=tiny_fp32, threads=1)
