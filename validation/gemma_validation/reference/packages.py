"""torch and transformers: imported when a reference needs them, and kept quiet."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from gemma_validation.errors import MissingPackageError

__all__ = ["quiet_transformers"]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[Any]:
    """The module, without its warnings and progress bars while the block runs: they are not about the export.

    Raises:
        MissingPackageError: torch or transformers is not installed.
    """
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise MissingPackageError(
            f"the reference is computed by PyTorch and transformers: {error}",
            hint='pip install "gemma-export[validate]"; or compare with a golden pack or another exported folder.',
        ) from error
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield transformers
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
