"""Whether two tokenizers give the same tokens."""

from __future__ import annotations

from pathlib import Path

from gemma_runtime.errors import GemmaRuntimeError, MissingTokenizerError
from gemma_runtime.errors import MissingPackageError as RuntimeMissingPackageError
from gemma_runtime.manifest import Manifest
from gemma_runtime.tokenizer import Tokenizer, load_tokenizer
from gemma_validation.errors import MismatchError, MissingPackageError, ReferenceMissingError
from gemma_validation.texts import folder_tokenizer, probe_texts

__all__ = ["check_tokenizers"]


def check_tokenizers(directory: Path, manifest: Manifest, other: Path, other_manifest: Manifest | None = None) -> None:
    """Holds the folder's tokenizer against another's where both have one: every token, and texts of every slice.

    Args:
        directory, manifest: the exported folder.
        other: a checkpoint, or an exported folder.
        other_manifest: of the exported folder.

    Raises:
        MismatchError: shows the token, or the text and the tokens of both.
        FolderUnreadableError, ReferenceMissingError, MissingPackageError: a tokenizer cannot be read.
    """
    first = folder_tokenizer(directory, manifest)
    second = _checkpoint_tokenizer(other) if other_manifest is None else folder_tokenizer(other, other_manifest)
    if first is None or second is None:
        return
    if first.bos_id != second.bos_id:
        raise _other(f"BOS: expected {second.bos_id}, found {first.bos_id}", other)
    for token in range(min(first.size, second.size)):
        wanted_bytes, found_bytes = second.token_bytes(token), first.token_bytes(token)
        if wanted_bytes != found_bytes:
            raise _other(f"token {token}: expected {wanted_bytes!r}, found {found_bytes!r}", other)
    for text in probe_texts():
        wanted, found = second.encode(text), first.encode(text)
        if wanted != found:
            raise _other(_first_difference(text, wanted, found), other)


def _first_difference(text: str, wanted: list[int], found: list[int]) -> str:
    pairs = zip(wanted, found, strict=False)
    shortest = min(len(wanted), len(found))
    index = next((index for index, (one, other) in enumerate(pairs) if one != other), shortest)
    part = slice(index, index + 4)
    return f"text {text[:40]!r}: expected tokens {wanted[part]} at place {index}, found {found[part]}"


def _checkpoint_tokenizer(directory: Path) -> Tokenizer | None:
    try:
        return load_tokenizer(directory)
    except MissingTokenizerError:
        return None
    except RuntimeMissingPackageError as error:
        raise MissingPackageError(error.message, hint=error.hint) from error
    except GemmaRuntimeError as error:
        raise ReferenceMissingError(f"reference {directory.name}: {error.message}", hint=error.hint) from error


def _other(what: str, other: Path) -> MismatchError:
    return MismatchError(
        f"the folder's tokenizer is not that of the reference {other.name}: {what}",
        hint="Export again, so that the folder has the checkpoint's own tokenizer files.",
    )
