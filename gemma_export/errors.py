"""Every failure a user of gemma-export can meet.

    GemmaExportError                     exit 1  a bug of ours unless a subclass says otherwise
    ├── UsageError                       exit 2  the command line contradicts itself
    │   └── UnknownVariantError
    ├── InputError                       exit 3  the input is broken, hostile or not what it says
    │   ├── ConfigError                          config.json: missing, unknown or impossible keys
    │   ├── CheckpointError                      shards, headers, names, shapes
    │   ├── NonFiniteError                       NaN or infinity in a weight, before or after a cast
    │   ├── TokenizerError                       tokenizer files that are broken
    │   │   └── UnfaithfulTokenizerError         a SentencePiece model that no tokenizer.json can mean
    │   └── FolderError                          an exported folder that does not match its manifest
    ├── MissingResourceError             exit 4  weights, tokenizer, token or package not there
    │   └── HubUnreachableError                  no network, or a server that keeps failing: a cached copy heals it
    │       └── NotTheHubError                   something else answered in the Hub's place
    ├── ResourceExhaustedError           exit 5  disk or memory too small
    ├── DriftError                       exit 6  the numbers would drift further than was allowed
    ├── OutputError                      exit 7  the output exists or another export holds it
    ├── ProviderUnavailableError         exit 8  execution provider or onnxruntime release cannot run this
    └── InternalError                    exit 1  a stage broke its own promise
        ├── TracingError                         the decoder could not be captured as a graph
        └── PassError                            a rewrite refused a node or missed its expected counts

Only the command line turns these into exit codes (`exit_code`).
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DriftError",
    "FolderError",
    "GemmaExportError",
    "HubUnreachableError",
    "InputError",
    "InternalError",
    "MissingResourceError",
    "NonFiniteError",
    "NotTheHubError",
    "OutputError",
    "PassError",
    "ProviderUnavailableError",
    "ResourceExhaustedError",
    "TokenizerError",
    "TracingError",
    "UnfaithfulTokenizerError",
    "UnknownVariantError",
    "UsageError",
]


class GemmaExportError(Exception):
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


class UsageError(GemmaExportError):
    """Options that contradict each other or name something that does not exist."""

    exit_code = 2


class UnknownVariantError(UsageError):
    """`--variant` names no known variant."""


class InputError(GemmaExportError):
    """Input that is broken, hostile or not what it claims to be."""

    exit_code = 3


class ConfigError(InputError):
    """A config.json that is missing keys, has impossible values or changes the mathematics."""


class CheckpointError(InputError):
    """A checkpoint whose shards, headers, tensor names or shapes are wrong."""


class NonFiniteError(InputError):
    """A weight that is NaN or infinite; the message names the tensor and the position."""


class TokenizerError(InputError):
    """A tokenizer file that is broken."""


class UnfaithfulTokenizerError(TokenizerError):
    """A sound SentencePiece model whose ids a tokenizer.json would not give for every text; exports go on without."""


class FolderError(InputError):
    """An exported folder that does not match its manifest."""


class MissingResourceError(GemmaExportError):
    """Weights, a tokenizer, a token or a package is not there."""

    exit_code = 4


class HubUnreachableError(MissingResourceError):
    """No network, or a server that keeps failing."""


class NotTheHubError(HubUnreachableError):
    """A captive portal, a proxy, a wrong HF_ENDPOINT: what came is no answer of the Hub."""


class ResourceExhaustedError(GemmaExportError):
    """Not enough disk or memory."""

    exit_code = 5


class DriftError(GemmaExportError):
    """A drift budget that nothing within the request can meet; the message says how near it came."""

    exit_code = 6


class OutputError(GemmaExportError):
    """The output folder exists, or another export is writing it."""

    exit_code = 7


class ProviderUnavailableError(GemmaExportError):
    """An execution provider or an onnxruntime release that cannot run the artifact."""

    exit_code = 8


class InternalError(GemmaExportError):
    """A stage broke its own promise: a bug, reported with what is needed to find it."""


class TracingError(InternalError):
    """The decoder could not be captured as a semantic graph."""


class PassError(InternalError):
    """A graph rewrite refused a node, or did not find what its target requires."""
