"""Every failure a user of gemma-validate can meet; what a validation finds is a verdict and no error.

    GemmaValidationError             exit 1  a bug of ours unless a subclass says otherwise
    ├── ValidationUsageError         exit 2  contradictory flags, an unknown suite
    ├── BudgetFileError              exit 2  a budget file that cannot be read, an unknown key, an impossible bound
    ├── FolderUnreadableError        exit 3  no manifest, or a graph that does not load
    ├── MismatchError                exit 3  reference and export are of different models, tokenizers or vocabularies
    ├── GoldenPackError              exit 3  a golden pack that was altered, or of another checkpoint
    ├── ReferenceNotFiniteError      exit 3  a golden pack cannot be made of NaN or infinity
    ├── ReferenceMissingError        exit 4  the checkpoint that the manifest names is not here
    ├── MissingPackageError          exit 4  torch or transformers is not installed
    ├── ReportDirectoryError         exit 7  reports cannot be written
    └── ProviderUnavailableError     exit 8  the execution provider does not start

Verdicts have codes of their own (`findings.EXIT_CODES`): passed 0, drift 6, inconclusive 9, structural or not finite 3.
Only the command line turns these into exit codes.
"""

from __future__ import annotations

__all__ = [
    "BudgetFileError",
    "FolderUnreadableError",
    "GemmaValidationError",
    "GoldenPackError",
    "MismatchError",
    "MissingPackageError",
    "ProviderUnavailableError",
    "ReferenceMissingError",
    "ReferenceNotFiniteError",
    "ReportDirectoryError",
    "ValidationUsageError",
]


class GemmaValidationError(Exception):
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


class ValidationUsageError(GemmaValidationError):
    """Options that cannot be meant together."""

    exit_code = 2


class BudgetFileError(GemmaValidationError):
    """A budget file that cannot be used."""

    exit_code = 2


class FolderUnreadableError(GemmaValidationError):
    """What should be validated is no exported folder, or its graph does not load."""

    exit_code = 3


class MismatchError(GemmaValidationError):
    """Reference and export cannot be compared: another model, tokenizer or vocabulary."""

    exit_code = 3


class GoldenPackError(GemmaValidationError):
    """A golden pack that is damaged, or whose model is another."""

    exit_code = 3


class ReferenceNotFiniteError(GemmaValidationError):
    """A reference that computes NaN or infinity: there is nothing to keep of it."""

    exit_code = 3


class ReferenceMissingError(GemmaValidationError):
    """Nothing to compare with: the checkpoint cannot be found."""

    exit_code = 4


class MissingPackageError(GemmaValidationError):
    """A package that this reference needs is not installed."""

    exit_code = 4


class ReportDirectoryError(GemmaValidationError):
    """Reports cannot be written where they should go."""

    exit_code = 7


class ProviderUnavailableError(GemmaValidationError):
    """The execution provider does not start here."""

    exit_code = 8
