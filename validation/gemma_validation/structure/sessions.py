"""A folder's sessions, one at a time: opening one takes seconds and all the weights' memory; each graph is profiled."""

from __future__ import annotations

import functools
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from gemma_runtime.manifest import Graph, Manifest
from gemma_validation.artifact import ArtifactRunner, graph_of_role

__all__ = ["ProfiledSessions"]

# tokens of a static graph's cache: a little more than are run
_CAPACITY = 4


class ProfiledSessions:
    """A folder's graphs, opened one at a time, and who runs the nodes of each.

    A session has the weights in memory and takes seconds to open where they are large. So there is one of them, whoever
    needs it gets it from `open` and leaves it open, and the first of each graph is profiled over two tokens. `close`
    gives the memory back; what is asked for afterwards is opened again.

    Args:
        directory: the exported folder.
        manifest: its manifest.
        provider: "cpu", "cuda" or "directml".
    """

    def __init__(self, directory: Path, manifest: Manifest, *, provider: str) -> None:
        self.manifest, self.provider = manifest, provider
        self._directory = directory
        # file -> how many nodes of each (provider, operator) ran, in onnxruntime's names
        self.ran: dict[str, Counter[tuple[str, str]]] = {}
        self._open: ArtifactRunner | None = None

    def open(self, role: str) -> ArtifactRunner:
        """The graph of a role: its session if it is the last one, else a new one, for which the last is closed.

        Raises:
            FolderUnreadableError, ProviderUnavailableError: see ArtifactRunner.
        """
        graph = graph_of_role(self.manifest, role)
        if self._open is None or self._open.graph != graph:
            self.close()
            self._open = self._new(graph)
        return self._open

    def close(self) -> None:
        """Gives the memory of the session that is open back."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _new(self, graph: Graph) -> ArtifactRunner:
        make = functools.partial(
            ArtifactRunner, self._directory, self.manifest, provider=self.provider, role=graph.role
        )
        if graph.file in self.ran:
            return make()
        with tempfile.TemporaryDirectory() as folder:
            runner = make(profile=Path(folder) / "profile")
            try:
                self.ran[graph.file] = _ran(runner)
            except BaseException:
                runner.close()
                raise
        return runner


def _ran(runner: ArtifactRunner) -> Counter[tuple[str, str]]:
    """How many nodes of each (provider, operator) run for two tokens."""
    _two_tokens(runner)
    events = json.loads(runner.end_profile().read_text(encoding="utf-8"))
    return Counter(
        (str(event["args"]["provider"]), str(event["args"]["op_name"]))
        for event in events
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    )


def _two_tokens(runner: ArtifactRunner) -> None:
    """A prompt of one token, and a token behind its cache, which kernels may run elsewhere than a prompt."""
    token = np.zeros((1, 1), np.int64)
    if runner.graph.role == "static":
        state = runner.state_in_place(1, _CAPACITY)
        for index in range(2):
            runner.step_in_place(token, (np.arange(_CAPACITY) <= index).astype(np.int64)[None], state)
        return
    past = None
    for index in range(2):
        past = runner.step(token, np.ones((1, index + 1), np.int64), past).present
