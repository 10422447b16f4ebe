"""A session of a graph that exists only in memory, over a folder's data files, which stay where they are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemma_validation.errors import FolderUnreadableError, ProviderUnavailableError

if TYPE_CHECKING:
    import onnx

__all__ = ["MemorySession"]


class MemorySession:
    """Runs a graph from `gemma_validation.localise.graphs` for one sequence at a time, from an empty cache.

    Args:
        model: the graph.
        folder: holds its data files.
        provider: "cpu", "cuda" or "directml".

    Raises:
        FolderUnreadableError: onnxruntime does not load the graph.
        ProviderUnavailableError: the provider does not start.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path, *, provider: str) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        from gemma_runtime.graph_choice import PROVIDERS
        from gemma_runtime.opening import session_options

        options = session_options(onnxruntime, 0, None)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        wanted = PROVIDERS[provider]
        if wanted not in onnxruntime.get_available_providers():
            raise ProviderUnavailableError(
                f"onnxruntime {onnxruntime.__version__} was built without the {provider} provider",
                hint="Install the onnxruntime package that has it, or choose --provider cpu.",
            )
        if provider == "cuda":
            getattr(onnxruntime, "preload_dlls", lambda: None)()
        try:
            self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[wanted])
        except Exception as error:
            # onnxruntime's exceptions share no base class of their own
            raise FolderUnreadableError(
                f"onnxruntime {onnxruntime.__version__} cannot load the graph with its points as outputs: "
                f"{str(error).splitlines()[0]}",
                hint="`gemma-export verify` checks the folder.",
            ) from error
        started = self._session.get_providers()[0]
        if started != wanted:
            raise ProviderUnavailableError(
                f"onnxruntime could not start the {provider} provider and fell back to {started}",
                hint="Check the driver and the CUDA and cuDNN libraries, or choose --provider cpu.",
            )

    def run(
        self, token_ids: Sequence[int], outputs: Sequence[str], feeds: Mapping[str, npt.NDArray[np.float32]]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Values [S, ...] of one sequence.

        Args:
            token_ids: of the sequence.
            outputs: names of the graph's outputs.
            feeds: what stands for points, [S, hidden_size] each.
        """
        ids = np.array([token_ids], np.int64)
        given: dict[str, npt.NDArray[Any]] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        given |= {f"{name}.wide": array[None] for name, array in feeds.items()}
        for value in self._session.get_inputs():
            if value.name not in given:
                given[value.name] = _empty(value)
        found = self._session.run(list(outputs), given)
        return {name: array[0] for name, array in zip(outputs, found, strict=True)}


def _empty(value: Any) -> npt.NDArray[Any]:
    """A cache that holds nothing yet: every length is 0, the batch is 1."""
    shape = [size if isinstance(size, int) else int(size == "batch_size") for size in value.shape]
    return np.zeros(shape, np.int8 if value.type == "tensor(int8)" else np.float32)
