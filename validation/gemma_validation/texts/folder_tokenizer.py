"""The tokenizer of an exported folder."""

from __future__ import annotations

from pathlib import Path

from gemma_runtime.errors import GemmaRuntimeError, MissingTokenizerError
from gemma_runtime.errors import MissingPackageError as RuntimeMissingPackageError
from gemma_runtime.manifest import Manifest
from gemma_runtime.tokenizer import Tokenizer, load_tokenizer
from gemma_validation.errors import FolderUnreadableError, MissingPackageError

__all__ = ["folder_tokenizer"]


def folder_tokenizer(directory: Path, manifest: Manifest) -> Tokenizer | None:
    """The tokenizer of an exported folder, from files that its manifest lists; None where it has none.

    Raises:
        FolderUnreadableError: its files are broken.
        MissingPackageError: the library for them is not installed.
    """
    try:
        return load_tokenizer(directory, listed={entry.path for entry in manifest.files})
    except MissingTokenizerError:
        return None
    except RuntimeMissingPackageError as error:
        raise MissingPackageError(error.message, hint=error.hint) from error
    except GemmaRuntimeError as error:
        raise FolderUnreadableError(f"{directory.name}: {error.message}", hint=error.hint) from error
