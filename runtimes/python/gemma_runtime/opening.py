"""Opening an onnxruntime session, so that it runs on the provider that was asked for or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_runtime.errors import ProviderError
from gemma_runtime.graph_choice import PROVIDERS

__all__ = ["open_session", "session_options"]


def session_options(onnxruntime: Any, threads: int, profile: Path | None) -> Any:
    """onnxruntime's SessionOptions.

    Args:
        onnxruntime: the module.
        threads: of the CPU's kernels; 0 leaves their number to onnxruntime.
        profile: beginning of the name of a file that onnxruntime writes its profile to.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # The arena keeps what a long prompt once took: 140 MB more behind 2,048 tokens of a 2B in 4 bits, and no faster.
    options.enable_cpu_mem_arena = False
    # warnings of the graph optimiser are not for users; errors become exceptions
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return options


# where the data files of a graph lie that onnxruntime gets as bytes:
# https://github.com/microsoft/onnxruntime/blob/main/include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


def open_session(
    onnxruntime: Any,
    file: Path,
    provider: str,
    options: Any,
    settings: Mapping[str, str] | None = None,
    *,
    graph: bytes | None = None,
) -> Any:
    """An InferenceSession of a graph.

    Args:
        onnxruntime: the module.
        file: of the graph.
        provider: "cpu", "cuda" or "directml".
        options: see `session_options`.
        settings: the provider's own options.
        graph: the graph itself, where it is not what the file holds; its data files lie beside the file.

    Raises:
        ProviderError: the graph does not load there, or the provider does not start.
    """
    if provider == "cuda":
        # finds the CUDA and cuDNN libraries that pip installed
        getattr(onnxruntime, "preload_dlls", lambda: None)()
    wanted = PROVIDERS[provider]
    if graph is not None:
        options.add_session_config_entry(_DATA_FOLDER, str(file.parent))
    try:
        session = onnxruntime.InferenceSession(graph or str(file), options, providers=[(wanted, dict(settings or {}))])
        started = session.get_providers()[0]
    except Exception as error:
        # onnxruntime's exceptions share no base class of their own
        raise ProviderError(
            f"onnxruntime {onnxruntime.__version__} cannot load {file.parent.name}/{file.name} on {provider}: "
            f"{str(error).splitlines()[0]}",
            hint="`gemma-export verify` checks the folder; a newer onnxruntime may know its operators.",
        ) from error
    if started != wanted:
        raise ProviderError(
            f"onnxruntime could not start the {provider} provider and fell back to {started}",
            hint="Check the driver and the CUDA and cuDNN libraries, or choose --provider cpu.",
        )
    return session
