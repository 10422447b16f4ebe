"""Every failure a user of gemma-run can meet.

    GemmaRuntimeError                exit 1  a bug of ours unless a subclass says otherwise
    ├── PromptError                  exit 2  empty prompt, prompt longer than the context, impossible sampling options,
    │                                        a schema, grammar or stop string that cannot be used,
    │                                        turns out of order, a file that is not UTF-8, a position outside it
    ├── ManifestError                exit 3  a folder that does not match its manifest
    ├── ModelOutputError             exit 3  the model gave NaN or infinity
    ├── MissingTokenizerError        exit 4  no tokenizer in the folder
    ├── MissingPackageError          exit 4  onnxruntime, a tokenizer library or llguidance is not installed
    └── ProviderError                exit 8  execution provider or onnxruntime release cannot run this folder

Only the command line turns these into exit codes (`exit_code`).
"""

from __future__ import annotations

__all__ = [
    "GemmaRuntimeError",
    "ManifestError",
    "MissingPackageError",
    "MissingTokenizerError",
    "ModelOutputError",
    "PromptError",
    "ProviderError",
]


class GemmaRuntimeError(Exception):
    """Base of all errors shown to a user.

    Args:
        message: one line: what is wrong, where, what was expected and what was found.
        hint: one line: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class PromptError(GemmaRuntimeError):
    """A prompt or an option that cannot be generated from."""

    exit_code = 2


class ManifestError(GemmaRuntimeError):
    """A folder without a readable manifest, or one that does not match it."""

    exit_code = 3


class ModelOutputError(GemmaRuntimeError):
    """The model gave NaN or infinity: whatever text it would make is meaningless."""

    exit_code = 3


class MissingTokenizerError(GemmaRuntimeError):
    """The folder holds no tokenizer."""

    exit_code = 4


class MissingPackageError(GemmaRuntimeError):
    """A package that this folder or command needs is not installed."""

    exit_code = 4


class ProviderError(GemmaRuntimeError):
    """An execution provider, or an onnxruntime release, that cannot run this folder."""

    exit_code = 8
