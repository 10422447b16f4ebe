"""Where the reference is: what the user gave, or what the manifest says the weights came from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Literal

from gemma_export.checkpoint import BUILTIN_DIRECTORIES, BUILTIN_DIRECTORY, GENERATOR_VERSION
from gemma_runtime.manifest import MANIFEST_FILE, Manifest, SourceFile
from gemma_validation.errors import MismatchError, ReferenceMissingError, ValidationUsageError
from gemma_validation.reference.hub_cache import cached_snapshot
from gemma_validation.reference.source_files import first_difference

__all__ = ["FoundReference", "find_reference"]

_CONFIG = "config.json"
_GIVE = "Give the checkpoint that it was exported from with --reference, or a golden pack, or another exported folder."


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundReference:
    """Where it is, not yet opened or held against the export."""

    # checkpoint: computed by transformers; folder: another export; golden: a file of stored log-probabilities
    kind: Literal["checkpoint", "folder", "golden"]
    # None for weights that are generated for the shapes of a released variant
    path: Path | None
    # for reports: the path's own name, a repository, "built-in", "synthetic 2b, seed 0"
    name: str
    # the adapter that was merged into the checkpoint's weights
    adapter: Path | None = None


def find_reference(
    directory: Path, manifest: Manifest, given: str | PurePath | None = None, *, itself: bool = False
) -> FoundReference:
    """Finds what an exported folder is to be compared with. Nothing is downloaded, no weights are read.

    Args:
        directory: the exported folder.
        manifest: its manifest.
        given: a checkpoint's folder, another exported folder, a golden pack, or a repository in the Hub cache; None
            looks for what the manifest names: the built-in checkpoint, a folder of the local checkpoint's name beside
            the export or in the working directory, the repository's commit in the Hub cache.
        itself: whether the folder may be its own reference: it runs on another provider there.

    Raises:
        ReferenceMissingError: it is not here.
        MismatchError: the weights are generated, and this release generates others.
        ValidationUsageError: it is the folder itself.
    """
    if given is not None and not itself and os.path.isdir(given) and os.path.samefile(given, directory):
        raise ValidationUsageError(
            f"--reference {given} is the folder that is to be validated: it would agree with itself",
            hint="Give its checkpoint, another exported folder or a golden pack, leave --reference out, or compare two "
            "providers with --reference-provider.",
        )
    found = _from_source(directory, manifest) if given is None else _given(given, manifest)
    adapter = manifest.source.adapter
    if found.kind != "checkpoint" or adapter is None:
        return found
    places = (directory, *(() if found.path is None else (found.path,)))
    return dataclasses.replace(found, adapter=_adapter(places, manifest))


def _given(given: str | PurePath, manifest: Manifest) -> FoundReference:
    path = Path(given)
    name = os.path.basename(os.path.abspath(path))
    if path.is_file():
        if path.suffix in (".safetensors", ".onnx", ".gguf"):
            raise ReferenceMissingError(
                f"--reference {given} is a file of {path.suffix[1:]}, which is no golden pack",
                hint="Give the folder that the file is in.",
            )
        return FoundReference(kind="golden", path=path, name=name)
    if path.is_dir():
        # an exported folder has a config.json too
        if (path / MANIFEST_FILE).is_file():
            return FoundReference(kind="folder", path=path, name=name)
        if (path / _CONFIG).is_file():
            if _generated(manifest):
                raise MismatchError(
                    f"the folder's weights were generated from seed {manifest.source.seed}, no checkpoint has them",
                    hint="Leave --reference out: they are generated again.",
                )
            return FoundReference(kind="checkpoint", path=path, name=name)
        raise ReferenceMissingError(
            f"--reference {given} has neither {_CONFIG} nor {MANIFEST_FILE}",
            hint="Give a checkpoint's folder, another exported folder, or a golden pack.",
        )
    # the command line makes a path of ORG/NAME, which on Windows is written with a backslash
    text = given.as_posix() if isinstance(given, PurePath) else given
    revision = manifest.source.revision if text == manifest.source.repository else None
    snapshot = cached_snapshot(text, revision)
    if snapshot is not None:
        return FoundReference(kind="checkpoint", path=snapshot, name=text)
    raise ReferenceMissingError(
        f"--reference {given} does not exist, and is no repository in the Hub cache",
        hint="Give a checkpoint's folder, another exported folder, or a golden pack; nothing is downloaded here.",
    )


def _from_source(directory: Path, manifest: Manifest) -> FoundReference:
    source = manifest.source
    if source.kind == "synthetic" and source.generator_version != GENERATOR_VERSION:
        raise MismatchError(
            f"the weights were made by generator {source.generator_version}, this release has generator "
            f"{GENERATOR_VERSION}",
            hint="Export again with this release, or validate with the release that exported the folder.",
        )
    if source.repository is not None:
        return FoundReference(kind="checkpoint", path=_in_hub_cache(manifest), name=source.repository)
    if source.name is not None:
        fits = _holder(tuple(file for file in source.files if file.name == _CONFIG))
        return FoundReference(
            kind="checkpoint", path=_beside(source.name, (directory,), fits, "checkpoint"), name=source.name
        )
    if source.kind == "builtin" or source.files:
        # of another name: what is wrong with it shows when it is held against the export
        path = BUILTIN_DIRECTORIES.get(manifest.variant or "", BUILTIN_DIRECTORY)
        return FoundReference(kind="checkpoint", path=path, name="built-in")
    assert _generated(manifest)
    name = f"synthetic {manifest.variant}, seed {source.seed}"
    return FoundReference(kind="checkpoint", path=None, name=name)


def _generated(manifest: Manifest) -> bool:
    """Whether nothing but the variant's shapes and a seed made the weights."""
    return manifest.source.kind == "synthetic" and not manifest.source.files


def _in_hub_cache(manifest: Manifest) -> Path:
    source = manifest.source
    assert source.repository is not None
    snapshot = cached_snapshot(source.repository, source.revision)
    if snapshot is None:
        raise ReferenceMissingError(
            f"the folder was exported from {source.repository} at commit {source.revision}, which is not in the Hub "
            "cache",
            hint=f"Fetch it with `hf download {source.repository} --revision {source.revision}`, or give --reference.",
        )
    return snapshot


def _adapter(places: tuple[Path, ...], manifest: Manifest) -> Path:
    adapter = manifest.source.adapter
    assert adapter is not None
    if adapter.repository is not None:
        snapshot = cached_snapshot(adapter.repository, adapter.revision, file="adapter_config.json")
        if snapshot is not None:
            return snapshot
        raise ReferenceMissingError(
            f"the adapter {adapter.repository} at commit {adapter.revision} was merged into the weights, and is not in "
            "the Hub cache",
            hint=f"Fetch it with `hf download {adapter.repository} --revision {adapter.revision}`.",
        )
    assert adapter.name is not None
    return _beside(adapter.name, places, _holder(adapter.files), "adapter")


def _beside(name: str, places: tuple[Path, ...], fits: Callable[[Path], str | None], what: str) -> Path:
    """The folder of that name beside one of the places, or in the working directory; `fits` says what is wrong."""
    if os.path.basename(name) != name or name in (".", ".."):
        raise ReferenceMissingError(f"{name!r} is no name of the {what}'s folder", hint=_GIVE)
    refused: list[str] = []
    looked: list[str] = []
    for folder in _folders(places):
        candidate = folder / name
        looked.append(str(folder))
        if candidate.is_dir():
            wrong = fits(candidate)
            if wrong is None:
                return candidate
            refused.append(f"{candidate} is another one ({wrong})")
    merged = ", which was merged into the weights," if what == "adapter" else ""
    found = "; ".join(refused) or f"no folder of that name in {' or '.join(looked)}"
    hint = _GIVE if what == "checkpoint" else "Put the adapter's folder beside the export, under its own name."
    raise ReferenceMissingError(f"the {what} {name!r}{merged} is not here: {found}", hint=hint)


def _folders(places: tuple[Path, ...]) -> Iterator[Path]:
    seen: set[Path] = set()
    for folder in (*(Path(os.path.abspath(place)).parent for place in places), Path.cwd()):
        if folder not in seen:
            seen.add(folder)
            yield folder


def _holder(files: tuple[SourceFile, ...]) -> Callable[[Path], str | None]:
    return lambda folder: first_difference(folder, files)
