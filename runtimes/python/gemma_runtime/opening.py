"""Opening an onnxruntime session, so that it runs on the provider that was asked for or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_runtime.errors import MissingPackageError, ProviderError
from gemma_runtime.graph_choice import PROVIDERS, release
from gemma_runtime.manifest import Manifest

__all__ = ["check_provider", "import_onnxruntime", "open_session", "session_options"]

_INSTALL = {
    "cpu": 'pip install "gemma-export[cpu]"',
    "cuda": 'pip uninstall onnxruntime, then pip install "gemma-export[cuda]"',
    "directml": 'pip uninstall onnxruntime, then pip install "gemma-export[directml]" (Windows)',
}
# where the data files of a graph lie that onnxruntime gets as bytes:
# https://github.com/microsoft/onnxruntime/blob/main/include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


def import_onnxruntime(provider: str) -> Any:
    """The module.

    Raises:
        MissingPackageError: it is not installed; says which package has the provider.
    """
    # telemetry is on by default since 1.29 and reads this only while it is imported
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(f"onnxruntime is not installed: {error}", hint=_INSTALL[provider]) from error
    return onnxruntime


def check_provider(onnxruntime: Any, manifest: Manifest, provider: str, *, min_onnxruntime: str | None = None) -> None:
    """Refuses before anything is loaded; never a silent fallback.

    Args:
        onnxruntime: the module.
        manifest: of the folder.
        provider: "cpu", "cuda" or "directml".
        min_onnxruntime: first release that loads the graph; None takes the least of the folder's graphs.

    Raises:
        ProviderError: the folder does not run there, or this onnxruntime does not have it or is too old.
    """
    needed = min_onnxruntime or manifest.min_onnxruntime
    if provider not in manifest.providers:
        bfloat16 = manifest.precision.activation_dtype == "bfloat16" and provider == "cpu"
        why = ": onnxruntime has no bfloat16 kernels there" if bfloat16 else ""
        raise ProviderError(
            f"this folder ({manifest.target}, {manifest.precision.name}) runs on {', '.join(manifest.providers)}, "
            f"not on {provider}{why}",
            hint=f"Choose --provider {manifest.providers[0]}, or export with a precision that runs on {provider}.",
        )
    if release(onnxruntime.__version__) < release(needed):
        raise ProviderError(
            f"this folder needs onnxruntime {needed} or later, found {onnxruntime.__version__}",
            hint="pip install --upgrade the onnxruntime package that is installed.",
        )
    if PROVIDERS[provider] not in onnxruntime.get_available_providers():
        raise ProviderError(
            f"the installed onnxruntime {onnxruntime.__version__} has no {provider} provider, found "
            f"{', '.join(onnxruntime.get_available_providers())}",
            hint=_installation_hint(provider),
        )


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


def _installation_hint(provider: str) -> str:
    """How to get a provider; packages that own the same import name break each other silently."""
    from gemma_runtime.doctor.installed import owners_of

    found = [owner.name for owner in owners_of("onnxruntime")]
    if len(found) > 1:
        return f"{' and '.join(found)} are installed together and break each other: gemma-run --doctor says what to do."
    return _INSTALL[provider]
