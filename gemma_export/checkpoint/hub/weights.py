"""Which files of a repository are a checkpoint, and its tensors before a byte of them is downloaded."""

from __future__ import annotations

from collections.abc import Mapping

from gemma_export.checkpoint.checkpoint import CONFIG, GENERATION_CONFIG, TOKENIZER_FILES
from gemma_export.checkpoint.header import PREFIX_BYTES, HeaderEntry, header_length, parse_header
from gemma_export.checkpoint.hub.repository import HubRepository
from gemma_export.checkpoint.safetensors_source import (
    INDEX,
    SINGLE,
    SafetensorsSource,
    gather_entries,
    no_weights_hint,
    pickle_only,
    read_index,
)
from gemma_export.errors import CheckpointError, GemmaExportError, InternalError
from gemma_export.progress import Progress
from gemma_export.tensors import StoredTensor

__all__ = ["HubWeights", "checkpoint_files", "hub_weights"]

# the header of a 7B's shard has 10 kB: one request a shard
_FIRST_READ = 64 << 10


def checkpoint_files(repository: HubRepository) -> list[str]:
    """The small files of a checkpoint: configuration and tokenizer, never code and never weights.

    Raises:
        GemmaExportError: there is no config.json.
    """
    if CONFIG not in repository.names:
        raise repository.lacks(
            CONFIG, hint=f"This is no checkpoint in the transformers format: {_what_it_is(repository)}"
        )
    return [name for name in (CONFIG, GENERATION_CONFIG, *TOKENIZER_FILES) if name in repository.names]


class HubWeights:
    """The tensors of a repository: names, shapes and types from the shards' headers, read over the network.

    Args:
        repository: where they are.
        shards: their files.
        index: tensor -> shard, if there are several.

    Raises:
        CheckpointError: a header that lies, or an index that contradicts its shards.
    """

    def __init__(self, repository: HubRepository, shards: tuple[str, ...], index: Mapping[str, str] | None) -> None:
        self._repository = repository
        self._shards = shards
        self._index = index
        headers = ((shard, _read_header(repository, shard)) for shard in shards)
        self._entries = gather_entries(headers, index)

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor by name."""
        return {name: entry.tensor for name, (_, entry) in self._entries.items()}

    @property
    def download_bytes(self) -> int:
        """What `download` would move."""
        return self._repository.download_bytes(self._shards)

    @property
    def device(self) -> int | None:
        """Which file system they would go to."""
        return self._repository.device()

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """See TensorSource: only a downloaded file can be read."""
        raise InternalError(f"tensor {name} was read before it was downloaded", hint="Please report this.")

    def download(self, progress: Progress | None = None) -> SafetensorsSource:
        """Fetches the shards that are not cached.

        Raises:
            GemmaExportError: as HubRepository.download.
        """
        self._repository.download(self._shards, progress)
        self._repository.complete(replace=True)
        return SafetensorsSource([self._repository.directory / shard for shard in self._shards], self._index)


def hub_weights(repository: HubRepository, progress: Progress | None = None) -> HubWeights:
    """Finds the shards of a repository and reads their headers.

    Raises:
        CheckpointError: no safetensors, or an index that names what the repository does not have.
    """
    if INDEX in repository.names:
        index = read_index(repository.path(INDEX, progress))
        shards = tuple(sorted(set(index.values())))
        absent = [shard for shard in shards if shard not in repository.names]
        if absent:
            raise repository.lacks(
                f"{absent[0]}, which {INDEX} names ({len(absent)} of {len(shards)} shards are absent)",
                hint="The repository is incomplete: tell its owner, or choose another revision.",
            )
        return HubWeights(repository, shards, index)
    if SINGLE in repository.names:
        return HubWeights(repository, (SINGLE,), None)
    raise _no_weights(repository)


def _no_weights(repository: HubRepository) -> GemmaExportError:
    # a cache without safetensors says nothing of the repository
    refusal = (
        pickle_only(f"{repository.repository} at {repository.revision}", _top(repository))
        if repository.names_known
        else None
    )
    return refusal or repository.lacks(f"weights: neither {SINGLE} nor {INDEX}", hint=_what_it_is(repository))


def _what_it_is(repository: HubRepository) -> str:
    names = _top(repository)
    if any(name.endswith(".gguf") for name in names):
        return "It holds files for llama.cpp: export the repository that they were made from."
    return no_weights_hint(names)


def _top(repository: HubRepository) -> list[str]:
    return sorted(name for name in repository.names if "/" not in name)


def _read_header(repository: HubRepository, shard: str) -> dict[str, HeaderEntry]:
    size = repository.size(shard)
    start = repository.read(shard, 0, _FIRST_READ)
    length = header_length(shard, start, size)
    text = start[PREFIX_BYTES : PREFIX_BYTES + length]
    if len(text) < length:
        text += repository.read(shard, PREFIX_BYTES + len(text), PREFIX_BYTES + length)
    if len(text) < length:
        raise CheckpointError(f"{shard} is truncated: its header ends early", hint="Run the command again.")
    return parse_header(shard, text, size)
