"""One graph on one execution provider."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from gemma_runtime.element_types import ELEMENT_TYPES
from gemma_runtime.errors import ManifestError, ModelOutputError, ProviderError
from gemma_runtime.graph_choice import PROVIDERS, graph_for, release
from gemma_runtime.manifest import Graph, Manifest
from gemma_runtime.opening import check_provider, import_onnxruntime, open_session, session_options
from gemma_runtime.state import DecoderState, make_state
from gemma_runtime.static_decode import StaticGraph

__all__ = ["PROVIDERS", "OpenedGraph", "default_threads", "thread_count"]

_DEVICES = {"cpu": "cpu", "cuda": "cuda", "directml": "dml"}
# onnxruntime's names of the element types
_TYPES = {element.onnxruntime: element.name for element in ELEMENT_TYPES.values()}
# Where kernels round the activations of quantised weights, a sum in another order now and then turns a rounding tie,
# and all logits move: by this share of their deviation at most, measured with int4 and int8-dynamic on text. Most
# comparisons show nothing of it, so a few of them are no bound.
_TURNED_TIE = {"cpu": 0.05}


class OpenedGraph:
    """One graph of a folder on one execution provider; several threads may run sequences of it.

    Steps run one after the other: each uses all of the machine's threads anyway, and so the memory of activations is
    that of one step however many conversations there are.

    Args:
        directory: the exported folder, structure checked.
        manifest: its manifest.
        provider: "cpu", "cuda" or "directml".
        threads: that kernels on the CPU use; None takes as many as this process may have.
        profile: beginning of the name of a file that onnxruntime writes its profile to (end_profile).
        static: also open the folder's static twin, whose steps of one token CUDA captures as a graph.
        windowed: "auto", "on" or "off": keep no more than their window of the layers that have one.
        guesses: whether several guessed tokens are to be checked at once, where a graph can.

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
        static: bool = False,
        windowed: str = "auto",
        guesses: bool = True,
    ) -> None:
        self.device = _DEVICES[provider]
        self.onnxruntime = import_onnxruntime(provider)
        check_provider(self.onnxruntime, manifest, provider)
        self.graph = graph_for(
            manifest,
            release(self.onnxruntime.__version__),
            provider=provider,
            windowed=windowed,
            guesses=guesses,
            static=static,
        )
        options = session_options(self.onnxruntime, thread_count(threads), profile)
        self._session = open_session(self.onnxruntime, directory / self.graph.file, provider, options)
        _check_interface(self._session, self.graph, manifest)
        self.element = ELEMENT_TYPES[manifest.precision.activation_dtype]
        self.cache_layout = manifest.cache_layout
        self.vocab_size, self.context_length = manifest.vocab_size, manifest.context_length
        self.static = _open_static(self.onnxruntime, directory, manifest, provider, options) if static else None
        # held while a step runs
        self.lock = threading.Lock()
        # see _TURNED_TIE; 0 where activations are not rounded
        self.turned_tie = _TURNED_TIE.get(provider, 0.0) if manifest.precision.options.get("scheme") else 0.0

    @property
    def chunked(self) -> bool:
        """Whether a prompt may go through in several steps, and steps of several tokens follow a prompt."""
        return self.graph.chunks != "none"

    @property
    def positions(self) -> int | None:
        """How many of a step's last positions get logits; None: all of them."""
        return {"last": 1, "all": None}[self.graph.logits] if isinstance(self.graph.logits, str) else self.graph.logits

    def state(self, capacity: int) -> DecoderState:
        """An empty cache of one row."""
        return make_state(
            self.onnxruntime, self.graph, cache_layout=self.cache_layout, capacity=capacity, device=self.device
        )

    def binding(self) -> Any:
        """What a sequence binds its tensors to."""
        return self._session.io_binding()

    def run(self, binding: Any) -> None:
        """Runs one step.

        Raises:
            ModelOutputError: onnxruntime refuses.
        """
        try:
            with self.lock:
                self._session.run_with_iobinding(binding)
        except Exception as error:
            # onnxruntime's exceptions share no base class of their own
            raise ModelOutputError(
                f"onnxruntime could not run {self.graph.file}: {str(error).splitlines()[0]}",
                hint="`gemma-export verify` checks the folder; with too little memory, shorten prompt and answer.",
            ) from error

    def end_profile(self) -> Path:
        """The profile of all that ran, where one was asked for; nothing later is part of it."""
        return Path(self._session.end_profiling())


def thread_count(threads: int | None) -> int:
    """Threads for a session: as many as asked for, or `default_threads`."""
    return default_threads() if threads is None else threads


def default_threads() -> int:
    """Threads for a session: 0, onnxruntime's own choice of a thread per physical core, unless less may be used.

    onnxruntime looks at neither a container's limit nor a process's affinity, and threads that wait for a turn on the
    processor hold up all others.
    """
    from gemma_runtime.doctor.machine import count_cores

    cores = count_cores()
    return 0 if cores.usable >= cores.logical else cores.usable


def _open_static(onnxruntime: Any, directory: Path, manifest: Manifest, provider: str, options: Any) -> StaticGraph:
    graph = next((graph for graph in manifest.graphs if graph.role == "static"), None)
    if graph is None:
        raise ProviderError(
            f"this folder ({manifest.target}, {manifest.precision.name}) has no static graph for CUDA to capture",
            hint="Export with --fp16 or --bf16 for CUDA, or run without CUDA graphs.",
        )
    return StaticGraph(
        onnxruntime,
        directory,
        graph,
        provider=provider,
        vocab_size=manifest.vocab_size,
        activation_dtype=manifest.precision.activation_dtype,
        options=options,
    )


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
