"""Whether reference and export are of one model: sizes, source files, tokenizer. Before anything slow."""

from __future__ import annotations

from pathlib import Path

from gemma_runtime.manifest import Manifest, Source, SourceFile
from gemma_validation.errors import MismatchError
from gemma_validation.reference.checkpoint import ReferenceCheckpoint
from gemma_validation.reference.find import FoundReference
from gemma_validation.reference.source_files import first_difference
from gemma_validation.reference.tokenizers import check_tokenizers

__all__ = ["check_checkpoint", "check_folder"]

_HINT = "Give the checkpoint that the folder was exported from, or export again."


def check_checkpoint(
    directory: Path, manifest: Manifest, found: FoundReference, checkpoint: ReferenceCheckpoint
) -> None:
    """Holds a checkpoint against an exported folder: architecture, then tokenizer, then every source file's hash.

    config.json and the weights must be the manifest's to the byte; tokenizer files may be saved anew, so they must
    only give the same tokens. generation_config.json and the chat template decide no logits.

    Args:
        directory, manifest: the exported folder.
        found: where the checkpoint is.
        checkpoint: the same, opened.

    Raises:
        MismatchError: names what differs, what was expected and what was found.
        FolderUnreadableError, ReferenceMissingError, MissingPackageError: a tokenizer cannot be read.
    """
    _check_architecture(manifest, checkpoint)
    if found.path is not None:
        check_tokenizers(directory, manifest, found.path)
        _check_files(found.path, manifest.source.files, f"reference {found.name}")
    if found.adapter is not None:
        adapter = manifest.source.adapter
        assert adapter is not None
        _check_files(found.adapter, adapter.files, f"adapter {found.adapter.name}")


def check_folder(directory: Path, manifest: Manifest, other: Path, other_manifest: Manifest) -> None:
    """Holds two exported folders against each other: family, vocabulary, tokenizer, source.

    Raises:
        MismatchError: names what differs.
        FolderUnreadableError, MissingPackageError: a tokenizer cannot be read.
    """
    for what, expected, found in (
        ("family", manifest.family, other_manifest.family),
        ("vocab_size", manifest.vocab_size, other_manifest.vocab_size),
    ):
        if expected != found:
            raise _differs(what, expected, found, f"folder {other.name}")
    check_tokenizers(directory, manifest, other, other_manifest)
    expected_source, found_source = _weights(manifest.source), _weights(other_manifest.source)
    for name in sorted(expected_source.keys() | found_source.keys()):
        wanted, has = expected_source.get(name, "none"), found_source.get(name, "none")
        if wanted != has:
            raise MismatchError(
                f"folder {other.name} was exported from other weights: {name}: expected {wanted}, found {has}",
                hint="Compare two exports of one checkpoint.",
            )


def _check_architecture(manifest: Manifest, checkpoint: ReferenceCheckpoint) -> None:
    """Sizes that the manifest states; the source files' hashes cover the rest."""
    spec, graph = checkpoint.spec, manifest.graph()
    states = [
        (state.layer, state.kind, state.num_heads, state.head_dim) for state in checkpoint.family.cache_states(spec)
    ]
    # [rows, heads, tokens, head size]
    exported = [(state.layer, state.kind, state.shape[1], state.shape[-1]) for state in graph.state]
    for what, expected, found in (
        ("family", manifest.family, spec.family),
        ("vocab_size", manifest.vocab_size, spec.vocab_size),
        ("decoder layers", len(exported), len(states)),
        ("cache of the layers (layer, kind, heads, head_dim)", exported, states),
    ):
        if expected != found:
            raise _differs(what, expected, found, f"reference {checkpoint.name}")


def _differs(what: str, expected: object, found: object, who: str) -> MismatchError:
    return MismatchError(f"{who} is another model: {what}: expected {expected}, found {found}", hint=_HINT)


def _check_files(directory: Path, files: tuple[SourceFile, ...], who: str) -> None:
    wrong = first_difference(directory, [file for file in files if _decides(file.name)])
    if wrong is not None:
        raise MismatchError(f"{who} is not what the folder was exported from: {wrong}", hint=_HINT)


def _decides(name: str) -> bool:
    """Whether a file decides the logits of given tokens."""
    return name in ("config.json", "adapter_config.json") or name.endswith(".safetensors")


def _weights(source: Source) -> dict[str, str]:
    """What the weights are, by name: hashes, seed, adapter."""
    found = {file.name: file.sha256 for file in source.files if _decides(file.name)}
    found |= {
        f"adapter {file.name}": file.sha256 for file in (source.adapter.files if source.adapter is not None else ())
    }
    if source.seed is not None:
        found["synthetic weights"] = f"seed {source.seed} of generator {source.generator_version}"
    return found
