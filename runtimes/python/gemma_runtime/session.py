"""One graph on one execution provider, with the decoder state bound in place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_runtime.element_types import ELEMENT_TYPES
from gemma_runtime.errors import ManifestError, MissingPackageError, ModelOutputError, ProviderError
from gemma_runtime.graph_choice import PROVIDERS, graph_for, release
from gemma_runtime.manifest import Graph, Manifest
from gemma_runtime.state import Buffer, DecoderState, make_state

__all__ = ["PROVIDERS", "DecoderSession"]

_DEVICES = {"cpu": "cpu", "cuda": "cuda", "directml": "dml"}
# onnxruntime's names of the element types
_TYPES = {element.onnxruntime: element.name for element in ELEMENT_TYPES.values()}
_INSTALL = {
    "cpu": 'pip install "gemma-export[cpu]"',
    "cuda": 'pip uninstall onnxruntime, then pip install "gemma-export[cuda]"',
    "directml": 'pip uninstall onnxruntime, then pip install "gemma-export[directml]" (Windows)',
}


class DecoderSession:
    """Runs decoder steps of one row.

    Where the kernels can, every state tensor is one buffer of full capacity, bound as past and as present: new keys
    and values are written in place and nothing is copied between steps (gemma_runtime.state).

    Args:
        directory: the exported folder, structure checked.
        manifest: its manifest; the main graph is taken.
        provider: "cpu", "cuda" or "directml".
        threads: of onnxruntime; None leaves the choice to it.
        profile: start of the name of a file that onnxruntime writes its profile to (end_profiling).

    Raises:
        ProviderError: the provider or the onnxruntime release cannot run this folder; never a silent fallback.
        MissingPackageError: no onnxruntime.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        provider: str,
        threads: int | None = None,
        profile: Path | None = None,
    ) -> None:
        self._device = _DEVICES[provider]
        self._onnxruntime = _import_onnxruntime(provider)
        _check_provider(self._onnxruntime, manifest, provider)
        self.graph = graph_for(manifest, release(self._onnxruntime.__version__))
        self._session = _open(self._onnxruntime, directory, self.graph, provider, threads, profile)
        _check_interface(self._session, self.graph, manifest)
        self._element = ELEMENT_TYPES[manifest.precision.activation_dtype]
        self._cache_layout = manifest.cache_layout
        self._vocab_size = manifest.vocab_size
        self._state: DecoderState | None = None
        self._position = self._capacity = 0
        self._mask = np.ones((1, 0), np.int64)

    def reset(self, capacity: int) -> None:
        """Starts a new sequence of at most `capacity` tokens."""
        self._binding = self._session.io_binding()
        self._logits: Buffer | None = None
        self._state = make_state(
            self._onnxruntime,
            self.graph,
            cache_layout=self._cache_layout,
            capacity=capacity,
            device=self._device,
        )
        self._position, self._capacity = 0, capacity
        self._mask = np.ones((1, capacity), np.int64)

    def step(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Appends tokens to the sequence.

        Args:
            ids: the tokens of a prompt, of a part of it, or one decoded token.

        Returns:
            float32 [vocab_size]: the logits after the last of them.
        """
        total = self._position + len(ids)
        assert total <= self._capacity
        assert self._state is not None
        if len(ids) > 1 and self._position > 0 and not self.chunked:
            raise ProviderError(
                f"{self.graph.file} takes a prompt whole: its attention would read a step of {len(ids)} tokens as new",
                hint="Give all tokens of a prompt in one step, or use a folder of --target ort.",
            )
        self._binding.bind_cpu_input("input_ids", np.asarray([ids], np.int64))
        self._binding.bind_cpu_input("attention_mask", np.ascontiguousarray(self._mask[:, :total]))
        # the logits first, so that they are the binding's output 0
        logits = self._bind_logits(len(ids))
        self._state.bind(self._binding)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            # onnxruntime's exceptions share no base class of their own
            raise ModelOutputError(
                f"onnxruntime could not run {self.graph.file}: {str(error).splitlines()[0]}",
                hint="`gemma-export verify` checks the folder; with too little memory, shorten prompt and answer.",
            ) from error
        self._state.advance(self._binding)
        self._position = total
        last: npt.NDArray[np.float32] = logits.float32()[0, -1]
        return last

    def end_profiling(self) -> Path:
        """The profile of everything that ran, where one was asked for."""
        return Path(self._session.end_profiling())

    @property
    def chunked(self) -> bool:
        """Whether a prompt may go through in several steps."""
        return self.graph.chunks != "none"

    def _bind_logits(self, sequence: int) -> Buffer:
        """A buffer for the logits of a step; it changes only where their number does."""
        positions = {"last": 1, "all": sequence}.get(str(self.graph.logits)) or min(int(self.graph.logits), sequence)
        if self._logits is None or self._logits.shape[1] != positions:
            shape = (1, positions, self._vocab_size)
            self._logits = Buffer(self._onnxruntime, shape, self._element, "cpu")
            self._logits.bind_output(self._binding, "logits")
        return self._logits


def _import_onnxruntime(provider: str) -> Any:
    # telemetry is on by default since 1.29 and reads this only while it is imported
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(f"onnxruntime is not installed: {error}", hint=_INSTALL[provider]) from error
    return onnxruntime


def _check_provider(onnxruntime: Any, manifest: Manifest, provider: str) -> None:
    if provider not in manifest.providers:
        bfloat16 = manifest.precision.activation_dtype == "bfloat16" and provider == "cpu"
        why = ": onnxruntime has no bfloat16 kernels there" if bfloat16 else ""
        raise ProviderError(
            f"this folder ({manifest.target}, {manifest.precision.name}) runs on {', '.join(manifest.providers)}, "
            f"not on {provider}{why}",
            hint=f"Choose --provider {manifest.providers[0]}, or export with a precision that runs on {provider}.",
        )
    if release(onnxruntime.__version__) < release(manifest.min_onnxruntime):
        raise ProviderError(
            f"this folder needs onnxruntime {manifest.min_onnxruntime} or later, found {onnxruntime.__version__}",
            hint="pip install --upgrade the onnxruntime package that is installed.",
        )
    if PROVIDERS[provider] not in onnxruntime.get_available_providers():
        raise ProviderError(
            f"the installed onnxruntime {onnxruntime.__version__} has no {provider} provider, found "
            f"{', '.join(onnxruntime.get_available_providers())}",
            hint=_installation_hint(provider),
        )


def _open(
    onnxruntime: Any, directory: Path, graph: Graph, provider: str, threads: int | None, profile: Path | None
) -> Any:
    options = onnxruntime.SessionOptions()
    # warnings of the graph optimiser are not for users; errors become exceptions
    options.log_severity_level = 3
    # 0 is onnxruntime's own choice
    options.intra_op_num_threads = threads or 0
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if provider == "cuda":
        # finds the CUDA and cuDNN libraries that pip installed
        getattr(onnxruntime, "preload_dlls", lambda: None)()
    wanted = PROVIDERS[provider]
    try:
        session = onnxruntime.InferenceSession(str(directory / graph.file), options, providers=[wanted])
    except Exception as error:
        # onnxruntime's exceptions share no base class of their own
        reason = str(error).splitlines()[0]
        raise ProviderError(
            f"onnxruntime {onnxruntime.__version__} cannot load {graph.file} on {provider}: {reason}",
            hint="`gemma-export verify` checks the folder; a newer onnxruntime may know its operators.",
        ) from error
    if session.get_providers()[0] != wanted:
        raise ProviderError(
            f"onnxruntime could not start the {provider} provider and fell back to {session.get_providers()[0]}",
            hint="Check the driver and the CUDA and cuDNN libraries, or choose --provider cpu.",
        )
    return session


def _check_interface(session: Any, graph: Graph, manifest: Manifest) -> None:
    """Holds the loaded graph against the manifest: a kernel's complaint in the middle of a text helps nobody."""
    expected = {name: (state.dtype, state.shape[1::2]) for state in graph.state for name in state.past}
    found = {
        value.name: (_TYPES.get(value.type, value.type), tuple(value.shape[1::2])) for value in session.get_inputs()
    }
    logits = next((value for value in session.get_outputs() if value.name == "logits"), None)
    positions = None if logits is None else {1: "last", "sequence_length": "all"}.get(logits.shape[1], graph.logits)
    wrong = [name for name, what in expected.items() if found.get(name) != what]
    wrong += sorted(set(found) ^ {*graph.inputs, *expected})
    told = None if logits is None else (_TYPES.get(logits.type), positions, logits.shape[-1])
    if told != (manifest.precision.activation_dtype, graph.logits, manifest.vocab_size):
        wrong.append("logits")
    if wrong:
        raise ManifestError(
            f"{graph.file} is not the graph that the manifest describes: {wrong[0]} differs",
            hint="The folder was altered: export it again.",
        )


def _installation_hint(provider: str) -> str:
    """How to get a provider; packages that own the same import name break each other silently."""
    from gemma_runtime.doctor.installed import owners_of

    found = [owner.name for owner in owners_of("onnxruntime")]
    if len(found) > 1:
        return f"{' and '.join(found)} are installed together and break each other: gemma-run --doctor says what to do."
    return _INSTALL[provider]
