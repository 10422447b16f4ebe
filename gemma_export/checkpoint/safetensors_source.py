"""Tensors of a checkpoint's safetensors files, sharded or single. Never pickle. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gemma_export.checkpoint.header import HeaderEntry, read_header
from gemma_export.checkpoint.json_file import read_json
from gemma_export.errors import CheckpointError, GemmaExportError, MissingResourceError
from gemma_export.tensors import StoredTensor

__all__ = [
    "INDEX",
    "SINGLE",
    "SafetensorsSource",
    "gather_entries",
    "no_weights_hint",
    "pickle_only",
    "read_index",
    "weight_files",
]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class SafetensorsSource:
    """Reads byte ranges of tensors; headers are checked at once, data only when asked for.

    Args:
        shards: the files.
        index: tensor -> name of the shard that must hold it, or None for a single file.

    Raises:
        CheckpointError: a header that lies, a tensor twice, an index that contradicts its shards.
    """

    def __init__(self, shards: Sequence[Path], index: Mapping[str, str] | None = None) -> None:
        self._paths = {shard.name: shard for shard in shards}
        self._entries = gather_entries(((shard.name, read_header(shard)) for shard in shards), index)

    @property
    def files(self) -> tuple[Path, ...]:
        """The shards."""
        return tuple(self._paths.values())

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor by name."""
        return {name: entry.tensor for name, (_, entry) in self._entries.items()}

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """See TensorSource. Plain reads, not mappings: mapped pages would count as this process's memory."""
        shard, entry = self._entries[name]
        path, done = self._paths[shard], 0
        try:
            # opened for each read: a few microseconds beside a megabyte, and no handle outlives an export
            with path.open("rb", buffering=0) as file:
                file.seek(entry.start + offset)
                while done < len(buffer) and (count := file.readinto(buffer[done:])):
                    done += count
        except OSError as error:
            raise CheckpointError(
                f"{path.name}: tensor {name[:80]!r} cannot be read: {error.strerror}", hint="Check the disk."
            ) from error
        if done < len(buffer):
            raise CheckpointError(
                f"{path.name} is truncated: tensor {name[:80]!r} ends {len(buffer) - done} bytes early",
                hint="The file changed during the export: fetch it again.",
            )


def gather_entries(
    headers: Iterable[tuple[str, Mapping[str, HeaderEntry]]], index: Mapping[str, str] | None
) -> dict[str, tuple[str, HeaderEntry]]:
    """Tensor -> (shard, entry) of all shards, held against the index.

    Args:
        headers: name of each shard with its tensors.
        index: tensor -> name of the shard that must hold it, or None for a single file.

    Raises:
        CheckpointError: a tensor twice, or an index that contradicts its shards.
    """
    entries: dict[str, tuple[str, HeaderEntry]] = {}
    for shard, header in headers:
        for name, entry in header.items():
            if name in entries:
                raise CheckpointError(
                    f"tensor {name[:80]!r} is in {entries[name][0]} and in {shard}",
                    hint="Shards of two checkpoints are mixed: fetch the checkpoint into an empty folder.",
                )
            entries[name] = (shard, entry)
    for name, shard in (index or {}).items():
        found = entries.get(name)
        if found is None or found[0] != shard:
            where = "no shard has it" if found is None else f"it is in {found[0]}"
            raise CheckpointError(
                f"{INDEX} puts tensor {name[:80]!r} into {shard}, but {where}",
                hint="Index and shards are of different checkpoints: fetch them again.",
            )
    return entries


def weight_files(directory: Path) -> tuple[tuple[Path, ...], dict[str, str] | None]:
    """The weight files of a checkpoint and its index, if it is sharded.

    Raises:
        MissingResourceError: there are no safetensors.
        CheckpointError: a shard is missing, or the index is not one.
    """
    if (directory / INDEX).is_file():
        index = read_index(directory / INDEX)
        shards = tuple(directory / name for name in sorted(set(index.values())))
        missing = [shard.name for shard in shards if not _is_file(shard)]
        if missing:
            raise CheckpointError(
                f"{directory.name}: {len(missing)} of {len(shards)} shards are missing, first {missing[0]}",
                hint="The download is incomplete: fetch the missing shards.",
            )
        return shards, index
    if (directory / SINGLE).is_file():
        return (directory / SINGLE,), None
    raise _no_weights(directory)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # a name longer than any file's
        return False


def read_index(path: Path) -> dict[str, str]:
    """Tensor -> name of its shard, from model.safetensors.index.json.

    Raises:
        ConfigError, CheckpointError: it is not an index, or names what is no file beside it.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path.name} has no weight_map", hint="Fetch the index again.")
    for name, shard in weight_map.items():
        # a shard is a file beside the index: nothing that leads elsewhere
        text = isinstance(shard, str) and shard.isprintable() and shard.endswith(".safetensors")
        if not text or set(shard) & set("/\\:"):
            raise CheckpointError(
                f"{path.name} puts tensor {name[:80]!r} into {str(shard)[:80]!r}, expected the name of a .safetensors "
                "file beside it",
                hint="Fetch the index again; do not export checkpoints from sources you do not trust.",
            )
    return weight_map


def _no_weights(directory: Path) -> GemmaExportError:
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    return pickle_only(directory.name, names) or MissingResourceError(
        f"{directory.name}: no weights: neither {SINGLE} nor {INDEX} is there", hint=no_weights_hint(names)
    )


def no_weights_hint(names: Sequence[str]) -> str:
    """What to do about a checkpoint without weights, judged by the names of its files, in order."""
    adapter = [name for name in names if name.startswith("adapter")]
    shards = [name for name in names if name.endswith(".safetensors")]
    if adapter:
        return "This is an adapter: give it with --adapter and its base model with --checkpoint."
    if shards:
        return f"{shards[0]} is there: a sharded checkpoint needs its {INDEX}."
    return "Fetch the checkpoint's safetensors files, or use --synthetic-weights."


def pickle_only(where: str, names: Sequence[str]) -> CheckpointError | None:
    """The refusal of a checkpoint whose weights are pickles, judged by the names of its files; None for another."""
    others = [name for name in names if name.startswith("adapter") or name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]
    if others or not pickles:
        return None
    return CheckpointError(
        f"{where} has its weights as {pickles[0]} only, a pickle: loading one can run any code, so it is never read",
        hint="Where you trust it, convert it: transformers' from_pretrained, then save_pretrained into a folder for "
        "--checkpoint; or look for safetensors in the repository that it is from (a pull request there is --revision "
        "refs/pr/N).",
    )
