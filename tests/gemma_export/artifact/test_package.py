"""The package itself: light to import, and everything it names is there."""

from __future__ import annotations

import pytest
from artifact.tiny_folder import run_child

from gemma_export import artifact


def test_planning_does_not_wait_for_onnx() -> None:
    code = (
        "import sys, gemma_export.artifact as a\n"
        "assert a.plan_data([[('a', 2048)]]).size == 2048 and a.data_file('') == 'onnx/model.onnx_data'\n"
        "a.check_output, a.check_disk\n"
        "print(sorted({'onnx', 'onnx_ir', 'numpy', 'torch', 'filelock'} & set(sys.modules)))"
    )
    assert run_child(code).strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in artifact.__all__:
        assert getattr(artifact, name) is not None
    assert artifact.write_folder.__module__ == "gemma_export.artifact.writer"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'read_folder'"):
        artifact.read_folder  # noqa: B018
