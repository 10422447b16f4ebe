"""Tensors of a checkpoint's safetensors files, sharded or single. Never pickle. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gemma_export.checkpoint.header import HeaderEntry, read_header
from gemma_export.checkpoint.json_file import read_json
from gemma_export.errors import CheckpointError, MissingResourceError
from gemma_export.tensors import StoredTensor

__all__ = ["SafetensorsSource", "weight_files"]

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class SafetensorsSource:
    """Reads byte ranges of tensors; headers are checked at once, data only when asked for.

    Args:
        shards: the files.
        index: tensor -> name of the shard that must hold it, or None for a single file.

    Raises:
        CheckpointError: a header that lies, a tensor twice, an index that contradicts its shards.
    """

    def __init__(self, shards: Sequence[Path], index: Mapping[str, str] | None = None) -> None:
        self._entries: dict[str, tuple[Path, HeaderEntry]] = {}
        for shard in shards:
            for name, entry in read_header(shard).items():
                if name in self._entries:
                    other = self._entries[name][0].name
                    raise CheckpointError(
                        f"tensor {name[:80]!r} is in {other} and in {shard.name}",
                        hint="Shards of two checkpoints are mixed: fetch the checkpoint into an empty folder.",
                    )
                self._entries[name] = (shard, entry)
        if index is not None:
            self._check_index(index)

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor by name."""
        return {name: entry.tensor for name, (_, entry) in self._entries.items()}

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """See TensorSource. Plain reads, not mappings: mapped pages would count as this process's memory."""
        path, entry = self._entries[name]
        done = 0
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

    def _check_index(self, index: Mapping[str, str]) -> None:
        for name, shard in index.items():
            found = self._entries.get(name)
            if found is None or found[0].name != shard:
                where = "no shard has it" if found is None else f"it is in {found[0].name}"
                raise CheckpointError(
                    f"{_INDEX} puts tensor {name[:80]!r} into {shard}, but {where}",
                    hint="Index and shards are of different checkpoints: fetch them again.",
                )


def weight_files(directory: Path) -> tuple[tuple[Path, ...], dict[str, str] | None]:
    """The weight files of a checkpoint and its index, if it is sharded.

    Raises:
        MissingResourceError: there are no safetensors.
        CheckpointError: a shard is missing, or the index is not one.
    """
    if (directory / _INDEX).is_file():
        index = _read_index(directory / _INDEX)
        shards = tuple(directory / name for name in sorted(set(index.values())))
        missing = [shard.name for shard in shards if not _is_file(shard)]
        if missing:
            raise CheckpointError(
                f"{directory.name}: {len(missing)} of {len(shards)} shards are missing, first {missing[0]}",
                hint="The download is incomplete: fetch the missing shards.",
            )
        return shards, index
    if (directory / _SINGLE).is_file():
        return (directory / _SINGLE,), None
    raise _no_weights(directory)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # a name longer than any file's
        return False


def _read_index(path: Path) -> dict[str, str]:
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


def _no_weights(directory: Path) -> MissingResourceError:
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    adapter = [name for name in names if name.startswith("adapter")]
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]
    shards = [name for name in names if name.endswith(".safetensors")]
    if adapter:
        hint = "This is an adapter: give it with --adapter and its base model with --checkpoint."
    elif shards:
        hint = f"{shards[0]} is there: a sharded checkpoint needs its {_INDEX}."
    elif pickles:
        hint = f"{pickles[0]} is a pickle, which can run code and is never read: save the model as safetensors."
    else:
        hint = "Fetch the checkpoint's safetensors files, or use --synthetic-weights."
    return MissingResourceError(f"{directory.name}: no weights: neither {_SINGLE} nor {_INDEX} is there", hint=hint)
