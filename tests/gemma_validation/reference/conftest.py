"""A small checkpoint and its export."""

from __future__ import annotations

import checkpoints
import pytest
from reference_exports import Exported, exported


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A local checkpoint of two layers and its export."""
    root = tmp_path_factory.mktemp("local")
    return exported(root, checkpoints.write(root / "base"))
