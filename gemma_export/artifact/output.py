"""The output folder appears whole or not at all, whatever interrupts the export.

Beside the output `name` an export uses two hidden siblings that share a random token:

    .name.staging-TOKEN     the new folder while it is written
    .name.replaced-TOKEN    the old folder, moved aside by --force once the new one is complete

so every move is a rename inside one file system. What a dead export can leave, and what `claim_output` of the next
one does about it, under the output's lock:

    staging alone                          incomplete, or never moved in: removed
    replaced and staging, no output        killed between the two renames: the new folder is complete, it is moved in
    replaced, no output                    the new folder is gone or damaged: the old one is moved back
    replaced and output                    killed while the old folder was removed: its rest is removed
    replaced, staging and output           no export of ours leaves this: nothing is touched, the user decides
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gemma_export.artifact.disk import explained, nearest_existing, sync_directory
from gemma_export.artifact.layout import MANIFEST_FILE
from gemma_export.artifact.lock import lock_output
from gemma_export.errors import OutputError

__all__ = ["Claim", "Staging", "check_output", "claim_output", "publish", "staged"]

_SIBLING = re.compile(r"\.(?P<name>.+)\.(?P<kind>staging|replaced)-(?P<token>[0-9a-f]{8})")
# what file managers leave everywhere
_DESKTOP_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
# Windows refuses to rename a folder while a virus scanner or an indexer looks into it: they let go in a moment
_RENAME_PATIENCE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Claim:
    """An output folder that this process alone may write.

    `recovered` says in a line each what a dead export had left and what was done about it.
    """

    output: Path
    recovered: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Staging:
    """The folder being written, and where the one it replaces will wait."""

    output: Path
    folder: Path
    replaced: Path


def check_output(output: Path, force: bool) -> None:
    """Refuses an output that may not be written or replaced; changes nothing.

    Raises:
        OutputError: it exists and `force` is off, it is not a folder of ours, or its parent cannot hold it.
    """
    output = _resolved(output)
    if os.path.lexists(output):
        _check_replaceable(output, force)
    place = nearest_existing(output.parent)
    if not place.is_dir():
        raise OutputError(f"cannot make {output}: {place} is a file", hint="Choose another folder with --output.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot make {output}: no right to write in {place}",
            hint="Choose a directory you may write to with --output, or correct its rights.",
        )


@contextmanager
def claim_output(output: Path, *, force: bool) -> Iterator[Claim]:
    """Holds an output folder for one export: locks it, cleans up after a dead export, checks it.

    Enter it before the first expensive step; `write_folder` inside it takes the same lock again.

    Raises:
        OutputError: as `check_output`, or another export holds the folder.
    """
    output = _resolved(output)
    with lock_output(output):
        recovered = _recover(output)
        check_output(output, force)
        yield Claim(output=output, recovered=recovered)


@contextmanager
def staged(output: Path) -> Iterator[Staging]:
    """An empty staging folder beside a claimed output, removed again when the block fails.

    Missing parents are made, and removed again with it.
    """
    token = secrets.token_hex(4)
    staging = Staging(
        output=output,
        folder=output.parent / f".{output.name}.staging-{token}",
        replaced=output.parent / f".{output.name}.replaced-{token}",
    )
    made: list[Path] = []
    try:
        with explained(output):
            for parent in [place for place in reversed(output.parents) if not place.exists()]:
                parent.mkdir(exist_ok=True)
                made.append(parent)
            staging.folder.mkdir()
        yield staging
    except BaseException:
        # best effort: the failure in hand is what the user must see, and the next run removes the rest
        shutil.rmtree(staging.folder, ignore_errors=True)
        for parent in reversed(made):
            _remove_if_empty(parent)
        raise


def publish(staging: Staging, *, force: bool) -> None:
    """Moves a complete, synced staging folder to its output; an old output gives way in the last moment.

    Raises:
        OutputError: something not replaceable stands there by now, or the file system refuses; it is left where it was.
    """
    # minutes have passed since the output was claimed, and other programs know no lock
    check_output(staging.output, force)
    with explained(staging.output):
        sync_directory(staging.folder.parent)
        try:
            if os.path.lexists(staging.output):
                _rename(staging.output, staging.replaced)
            _rename(staging.folder, staging.output)
            sync_directory(staging.output.parent)
        except BaseException:
            if staging.replaced.exists() and not os.path.lexists(staging.output):
                _rename(staging.replaced, staging.output)
            raise
        finally:
            # the old folder goes once the new one stands; an interrupted removal is finished by the next run
            if staging.replaced.exists() and not staging.folder.exists():
                shutil.rmtree(staging.replaced)


def _resolved(output: Path) -> Path:
    output = Path(os.path.abspath(output))
    output = Path(os.path.realpath(output.parent)) / output.name
    if not output.name:
        raise OutputError(f"{output} cannot be an output folder", hint="Name a folder of its own with --output.")
    if _SIBLING.fullmatch(output.name):
        raise OutputError(
            f"{output} is named like the temporary folder of an export", hint="Choose another name with --output."
        )
    return output


def _check_replaceable(output: Path, force: bool) -> None:
    if output.is_symlink():
        raise OutputError(f"{output} is a symbolic link", hint="Give the folder it points to with --output.")
    if not output.is_dir():
        raise OutputError(f"{output} exists and is a file", hint="Choose another folder with --output.")
    if not force:
        raise OutputError(
            f"{output} exists", hint="Choose another folder with --output, or replace this one with --force."
        )
    with explained(output):
        # first: rglob passes over what may not be looked into
        empty = not any(output.iterdir())
        found = {path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir()}
    if not empty:
        _check_ours(output, found)


def _check_ours(output: Path, found: set[str]) -> None:
    """Refuses a folder that holds anything that an export did not write: replacing it would delete that."""
    from gemma_runtime.errors import ManifestError
    from gemma_runtime.manifest import read_manifest

    hint = "--force replaces only folders that gemma-export wrote; move your files away, or choose another folder."
    if MANIFEST_FILE not in found:
        raise OutputError(f"{output} is not an exported folder: it has no {MANIFEST_FILE}", hint=hint)
    try:
        listed = {entry.path for entry in read_manifest(output).files} | {MANIFEST_FILE}
    except ManifestError as error:
        raise OutputError(f"{output} is not an exported folder: {error.message}", hint=hint) from error
    foreign = sorted(name for name in found - listed if name.rpartition("/")[2] not in _DESKTOP_FILES)
    if foreign:
        raise OutputError(f"{output} holds {foreign[0]!r}, which no export wrote", hint=hint)


def _recover(output: Path) -> tuple[str, ...]:
    # Path.is_dir raises where a parent may not be searched; check_output says so in a user's words
    if not os.path.isdir(output.parent):
        return ()
    left: dict[str, dict[str, Path]] = {}
    with explained(output.parent):
        for path in sorted(output.parent.iterdir()):
            match = _SIBLING.fullmatch(path.name)
            if match and match["name"] == output.name and path.is_dir() and not path.is_symlink():
                left.setdefault(match["token"], {})[match["kind"]] = path
        return tuple(_settle(output, pair.get("staging"), pair.get("replaced")) for pair in left.values())


def _settle(output: Path, staging: Path | None, replaced: Path | None) -> str:
    if replaced is None:
        assert staging is not None
        shutil.rmtree(staging)
        return f"removed {staging.name}, which an interrupted export had left"
    if os.path.lexists(output):
        if staging is not None:
            raise OutputError(
                f"{output} stands beside {replaced.name} and {staging.name}: which of them is meant is unclear",
                hint=f"Keep the folder you want as {output.name} and remove or rename the other two.",
            )
        shutil.rmtree(replaced)
        return f"removed {replaced.name}, the rest of a folder that had been replaced"
    if staging is not None and _complete(staging):
        _rename(staging, output)
        sync_directory(output.parent)
        shutil.rmtree(replaced)
        return f"finished replacing {output.name}, which had been interrupted"
    _rename(replaced, output)
    sync_directory(output.parent)
    if staging is not None:
        shutil.rmtree(staging)
    return f"restored {output.name}, which an interrupted export had moved aside"


def _complete(staging: Path) -> bool:
    """Structure, sizes and the small files' hashes: the weights were synced before the first rename."""
    from gemma_runtime.errors import ManifestError
    from gemma_runtime.manifest import read_manifest, verify_structure

    try:
        verify_structure(staging, read_manifest(staging))
    except ManifestError:
        return False
    return True


def _rename(source: Path, target: Path) -> None:
    deadline = time.monotonic() + _RENAME_PATIENCE_SECONDS
    while True:
        try:
            os.rename(source, target)
            return
        except PermissionError:
            if os.name != "nt" or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        # somebody else put something there meanwhile: it stays
        return
